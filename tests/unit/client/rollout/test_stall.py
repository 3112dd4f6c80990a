"""What is told while nothing ends."""

import asyncio
import logging
import time

import pytest

from farstep.rollout import stall
from farstep.rollout.stall import StallWatch


async def test_a_loop_that_stands_still_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An async agent that asks with a client that does not await: nobody else goes on meanwhile."""
    monkeypatch.setattr(stall, "_HELD_UP_S", 0.2)
    watch = StallWatch(0.4, list)
    with caplog.at_level(logging.WARNING, "farstep"):
        async with watch.watching():
            for _ in range(2):
                await asyncio.sleep(0.01)
                time.sleep(0.5)  # noqa: ASYNC251 (the mistake that is told of)
            while "held up" not in caplog.text:  # noqa: ASYNC110 (a log has no event)
                await asyncio.sleep(0.01)
    assert caplog.text.count("the event loop was held up") == 1
