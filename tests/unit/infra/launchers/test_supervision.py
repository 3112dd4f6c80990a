"""A process that is kept alive, with tiny real processes."""

import asyncio
import os
import signal
import sys

import pytest

from farstep_infra.launchers.base import LaunchFailed, ProcessSpec
from farstep_infra.launchers.local import LocalLauncher
from farstep_infra.launchers.ports import choose_port
from farstep_infra.launchers.restarts import RestartPolicy
from farstep_infra.launchers.supervision import Supervised

READY = 'import sys, time; print(\'{"event": "ready", "url": "http://x"}\', flush=True); '
QUICK = RestartPolicy(first_s=0.01, most_s=0.02, well_s=60.0, max_quick_deaths=4)


class Kept:
    """One supervised process whose program may change from life to life."""

    def __init__(self, tmp_path, code, *, was_ready=False, policy=QUICK, port=None):
        self.code = code
        self.ports = {"http": port} if port else {}
        self.greetings = []
        launcher = LocalLauncher(tmp_path, host="127.0.0.1")
        self.it = Supervised(launcher, "it", self.spec, greet=self.greet, was_ready=was_ready, policy=policy)

    def spec(self):
        return ProcessSpec("it", "trainer", (sys.executable, "-S", "-c", self.code), {}, ports=self.ports)

    async def greet(self, announcement):
        self.greetings.append(announcement["url"])

    async def until(self, true):
        async with asyncio.timeout(30):
            while not true():  # noqa: ASYNC110 - what happens in another process sets no event here
                await asyncio.sleep(0.01)


async def test_one_that_is_killed_comes_back_until_it_is_stopped(tmp_path):
    kept = Kept(tmp_path, READY + "sys.stdin.read()")
    kept.it.start()
    kept.it.start()  # nothing more
    await kept.it.ready()
    for count in (1, 2, 3):
        pid = kept.it.pid
        os.kill(pid, signal.SIGKILL)
        await kept.until(lambda count=count: kept.it.num_restarts == count and kept.it.is_running)
        assert kept.it.pid != pid
        assert "by signal SIGKILL" in kept.it.last_words
    assert kept.greetings == ["http://x"] * 4
    await kept.it.stop()
    assert (kept.it.condition, kept.it.pid) == ("stopped", 0)
    assert kept.it.num_restarts == 3


async def test_one_that_was_never_ready_is_given_up_at_once_and_says_why(tmp_path):
    kept = Kept(tmp_path, 'import sys; sys.exit("no such model")')
    kept.it.start()
    with pytest.raises(LaunchFailed, match=r"(?s)exit code 1.*no such model"):
        await kept.it.ready()
    assert (kept.it.condition, kept.it.num_restarts) == ("failed", 0)


async def test_a_crash_loop_ends_with_an_epitaph_and_begins_anew_when_asked(tmp_path):
    kept = Kept(tmp_path, READY + 'sys.exit("out of luck")')
    kept.it.start()
    await kept.until(lambda: kept.it.condition == "failed")
    assert kept.it.num_restarts == QUICK.max_quick_deaths - 1
    with pytest.raises(LaunchFailed, match="out of luck"):
        await kept.it.ready()
    kept.code = READY + "sys.stdin.read()"
    kept.it.start()
    await kept.it.ready()
    await kept.it.stop()


async def test_a_start_that_fails_is_tried_again_where_it_went_well_before(tmp_path):
    kept = Kept(tmp_path, 'import sys; sys.exit("not yet")', was_ready=True)
    kept.it.start()
    await kept.until(lambda: kept.it.condition == "restarting")
    kept.code = READY + "sys.stdin.read()"
    await kept.it.ready()
    await kept.it.stop()


@pytest.mark.parametrize("when", ["starting", "restarting"])
async def test_stopping_is_possible_at_any_time(tmp_path, when):
    slow = RestartPolicy(first_s=60.0)
    code = "import time; time.sleep(600)" if when == "starting" else READY
    kept = Kept(tmp_path, code, policy=slow)
    kept.it.start()
    await kept.until(lambda: kept.it.condition == when)
    waiting = asyncio.create_task(kept.it.ready())
    await asyncio.sleep(0)
    await kept.it.stop(grace_s=0.1)
    assert kept.it.condition == "stopped"
    with pytest.raises(LaunchFailed):
        await waiting


async def test_one_that_hangs_is_killed_without_grace_and_comes_back(tmp_path):
    kept = Kept(tmp_path, READY + "time.sleep(600)")
    kept.it.start()
    await kept.it.ready()
    os.kill(kept.it.pid, signal.SIGSTOP)
    await kept.it.kill("it did not answer")
    await kept.it.ready()
    assert kept.it.num_restarts == 1
    assert kept.it.last_words == "it was killed: it did not answer"
    await kept.it.stop(grace_s=0)


async def test_a_port_that_is_taken_meanwhile_is_said_and_waited_for(tmp_path):
    port = choose_port("127.0.0.1")
    policy = RestartPolicy(first_s=0.05, most_s=0.05, max_quick_deaths=1000)
    kept = Kept(tmp_path, READY + "sys.stdin.read()", was_ready=True, policy=policy, port=port)
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", port)
    kept.it.start()
    await kept.until(lambda: kept.it.condition == "restarting")
    assert f"port {port}" in kept.it.last_words
    server.close()
    await server.wait_closed()
    await kept.it.ready()
    await kept.it.stop()
