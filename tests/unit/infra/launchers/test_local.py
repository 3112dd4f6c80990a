"""One process: started, waited for, watched, stopped."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from farstep_infra.launchers.base import LaunchFailed, ProcessSpec
from farstep_infra.launchers.local import LocalLauncher, torch_environment

READY = 'import sys; print(\'{"event": "ready", "url": "http://x", "pid": 3}\', flush=True); '


def spec(code, *, ports=None, **env):
    env = {"PATH": os.environ["PATH"], **env}
    return ProcessSpec("it", "trainer", (sys.executable, "-c", code), env, ports=ports or {})


async def launch(tmp_path, code, **more):
    return await LocalLauncher(tmp_path / "logs", host="127.0.0.1").start(spec(code, **more))


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
    nothing = ProcessSpec("it", "trainer", (str(tmp_path / "none"),), {})
    with pytest.raises(LaunchFailed, match="cannot start it"):
        await LocalLauncher(tmp_path, host="127.0.0.1").start(nothing)


async def test_a_port_that_another_has_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchFailed, match=rf"port {port} of 127\.0\.0\.1 for its feed server.*has taken it"):
            await launch(tmp_path, READY, ports={"feed": port})


async def test_death_is_seen_though_a_child_of_it_goes_on_and_holds_its_output(tmp_path):
    code = (
        "import subprocess, sys\n"
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)\n'
        + READY.replace('"pid": 3', "\"pid\": ' + str(child.pid) + '")
        + "\nsys.exit(4)"
    )
    process = await launch(tmp_path, code)
    grandchild = psutil.Process(int((await process.ready(deadline_s=20))["pid"]))
    try:
        await asyncio.wait_for(process.ended(), 20)
        assert process.state == "died"
        assert "exit code 4" in process.epitaph()
    finally:
        grandchild.kill()


def test_kill_minus_nine_of_the_parent_leaves_no_child_also_none_that_hangs(tmp_path):
    """The child is stopped, so that it reads no pipe; its parent is killed with it still in that state."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from farstep_infra.launchers.base import ProcessSpec\n"
        "from farstep_infra.launchers.local import LocalLauncher\n"
        "async def main():\n"
        "    launcher = LocalLauncher(Path(sys.argv[1]), host='127.0.0.1')\n"
        "    spec = ProcessSpec('it', 'trainer', (sys.executable, '-c', sys.argv[2]), {})\n"
        "    process = await launcher.start(spec)\n"
        "    await process.ready(deadline_s=20)\n"
        "    print(process.pid, flush=True)\n"
        "    await process.ended()\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path), READY + "import time; time.sleep(600)"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        child.suspend()
        parent.kill()
    assert psutil.wait_procs([child], timeout=20)[1] == []


def test_what_the_user_sets_for_torch_comes_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert torch_environment() == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3"}
