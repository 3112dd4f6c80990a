"""Work that goes on after its request was answered: one task per run or sampler being made ready.

It knows ids and tasks, not what they make.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Provisioning:
    """Tasks by id, and those who wait for them. Lives on one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._released = asyncio.Event()

    def start(self, work_id: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"provision-{work_id}")
        self._tasks[work_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(work_id))

    async def wait(self, work_id: str, wait_s: float) -> None:
        """Until that work has ended (or was never begun), nobody is to wait any more, or `wait_s` has passed."""
        task = self._tasks.get(work_id)
        if task is None or wait_s <= 0:
            return
        released = asyncio.create_task(self._released.wait())
        await asyncio.wait([task, released], timeout=wait_s, return_when="FIRST_COMPLETED")
        released.cancel()

    async def cancel(self, work_id: str) -> None:
        if task := self._tasks.get(work_id):
            task.cancel()
            await asyncio.wait([task])

    def has(self, work_id: str) -> bool:
        """Whether that work goes on."""
        return work_id in self._tasks

    @property
    def is_released(self) -> bool:
        """Whether nobody is to wait any more."""
        return self._released.is_set()

    def release(self) -> None:
        """Lets everybody go who waits, now and later."""
        self._released.set()

    async def close(self) -> None:
        for work_id in list(self._tasks):
            await self.cancel(work_id)
