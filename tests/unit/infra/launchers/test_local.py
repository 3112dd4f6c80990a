"""One process: started, waited for, watched, stopped."""

import asyncio
import os
import signal
import sys

import psutil
import pytest

from farstep_infra.launchers.local import LaunchFailed, LocalProcess, torch_environment

READY = 'import sys; print(\'{"event": "ready", "url": "http://x", "pid": 3}\', flush=True); '


async def launch(tmp_path, code, **env):
    env = {"PATH": os.environ["PATH"], **env}
    return await LocalProcess.start("it", [sys.executable, "-c", code], env=env, logs=tmp_path / "logs")


def log_of(tmp_path):
    return (tmp_path / "logs" / "it.log").read_text()


async def until(true):
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what happens in another process sets no event here
            await asyncio.sleep(0.02)


async def test_it_is_ready_when_it_says_so_and_everything_else_is_log(tmp_path):
    code = (
        'import os; print("before"); print("{\\"event\\": \\"other\\"}"); print("[1]")\n'
        + READY
        + 'print("after " + os.environ["GIVEN"]); print("x" * 300_000); print("no newline", end="", flush=True)\n'
        'sys.stderr.write("aside\\n"); sys.stdin.read()'
    )
    process = await launch(tmp_path, code, GIVEN="this")
    assert process.state == "starting"
    announcement = await process.ready(deadline_s=20)
    assert announcement["url"] == "http://x"
    assert announcement["pid"] == "3"
    assert process.state == "running"
    await until(lambda: "aside" in log_of(tmp_path))
    await process.stop()
    assert process.state == "stopped"
    assert not psutil.pid_exists(process.pid)
    log = log_of(tmp_path)
    for said in ("before", '{"event": "other"}', "[1]", "after this", "x" * 300_000, "no newline", "aside"):
        assert said in log
    assert "http://x" not in log


async def test_death_before_it_is_ready_is_told_with_the_end_of_this_log(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "it.log").write_text("an earlier life\n")
    process = await launch(tmp_path, 'import sys; sys.exit("the reason")')
    with pytest.raises(LaunchFailed, match="it ended with exit code 1") as caught:
        await process.ready(deadline_s=20)
    assert "the reason" in str(caught.value)
    assert "an earlier life" not in str(caught.value)
    assert str(tmp_path / "logs" / "it.log") in str(caught.value)
    assert process.state == "died"
    assert log_of(tmp_path).startswith("an earlier life\n")


async def test_silence_ends_at_the_deadline_and_so_does_the_process(tmp_path):
    process = await launch(tmp_path, 'import time; print("thinking", flush=True); time.sleep(60)')
    with pytest.raises(LaunchFailed, match=r"(?s)not ready within 1 s.*thinking"):
        await process.ready(deadline_s=1)
    assert process.state == "stopped"
    assert not psutil.pid_exists(process.pid)


async def test_sudden_death_is_visible(tmp_path):
    process = await launch(tmp_path, READY + "sys.stdin.read()")
    await process.ready(deadline_s=20)
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: process.state != "running")
    await process.stop()  # there is nothing left to stop
    assert process.state == "died"
    assert "by signal SIGKILL" in process.epitaph()


async def test_one_that_will_not_end_is_killed_with_its_children(tmp_path):
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
        + READY.replace('"pid": 3', "\"pid\": ' + str(child.pid) + '")
        + "\nwhile True: signal.pause()"
    )
    process = await launch(tmp_path, code)
    child = psutil.Process(int((await process.ready(deadline_s=20))["pid"]))
    await process.stop(grace_s=0.2)
    assert process.state == "stopped"
    assert psutil.wait_procs([child], timeout=10)[1] == []


async def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(LaunchFailed, match="cannot start it"):
        await LocalProcess.start("it", [str(tmp_path / "none")], env={}, logs=tmp_path)


def test_what_the_user_sets_for_torch_comes_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert torch_environment() == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3"}
