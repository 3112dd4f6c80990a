"""What users wrote is called so that it can end nothing but itself."""

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from farstep.rollout.calling import call_agent
from farstep.rollout.loop_thread import LoopThread
from farstep.rollout.threads import DaemonThreads


def exits(ctx: Any, batch: Any) -> None:
    sys.exit(3)


def runs_out(ctx: Any, batch: Any) -> None:
    next(iter(()))


def is_interrupted(ctx: Any, batch: Any) -> None:
    raise KeyboardInterrupt


async def exits_on_the_loop(ctx: Any, batch: Any) -> None:
    sys.exit(3)


async def cancels_itself(ctx: Any, batch: Any) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (exits, r"sys.exit\(3\)"),
        (runs_out, "StopIteration"),
        (is_interrupted, "KeyboardInterrupt"),
        (exits_on_the_loop, r"the agent called sys.exit\(3\)"),
        (cancels_itself, "the agent cancelled itself"),
    ],
)
def test_what_would_end_the_loop_is_an_ordinary_error(agent: Callable[..., Any], message: str) -> None:
    loop = LoopThread()
    try:
        with pytest.raises(RuntimeError, match=message):
            loop.run(asyncio.wait_for(call_agent(agent, None, None, DaemonThreads("test")), 10))
        assert loop.run(asyncio.sleep(0, "alive")) == "alive"
    finally:
        loop.stop()


async def test_a_cancellation_that_was_asked_for_is_one() -> None:
    waits = asyncio.Event()

    async def agent(ctx: Any, batch: Any) -> None:
        waits.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(call_agent(agent, None, None, DaemonThreads("test")))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_that_hang_take_no_place_and_keep_no_process() -> None:
    threads, hang = DaemonThreads("hanging"), threading.Event()
    hung = [threads.submit(hang.wait) for _ in range(40)]
    loop = asyncio.get_running_loop()
    assert await asyncio.wait_for(loop.run_in_executor(threads, lambda: 7), 10) == 7
    ours = [each for each in threading.enumerate() if each.name == "hanging"]
    assert len(ours) >= 40
    assert all(each.daemon for each in ours)  # the interpreter waits for threads of a pool when it ends
    threads.shutdown()
    with pytest.raises(RuntimeError, match="ended"):
        threads.submit(hang.wait)
    hang.set()
    assert all(each.result(10) for each in hung)
