"""One job on the engine, seen from the event loop: its tokens as they come, its result at the end.

A reader who is slow loses nothing and costs nothing: what comes meanwhile is joined into one delta a sample, so
that what waits is never more than the job may grow to. Leaving the block cancels a job that is not finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from farstep_sampler.result import SampleDelta, SampleResult, joined

Switch = Callable[[int, int], Awaitable[None]]


class Sampling:
    """A job in flight; made by `EngineThread.sampling`, for one task at a time.

    async with engine.sampling(job, slot=slot, version=version, streams=True) as sampling:
        async for deltas in sampling: ...
        result = await sampling.result()
    """

    def __init__(self, *, end: Callable[[], None], switch: Switch) -> None:
        self._end = end
        self._switch = switch
        self._result: asyncio.Future[SampleResult] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, list[SampleDelta]] = {}  # by sample, what the reader has not seen
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end()
        if not self._result.done():
            self._result.cancel()
        elif not self._result.cancelled():
            self._result.exception()  # seen, whether or not anyone asked for it

    @property
    def is_done(self) -> bool:
        return self._result.done()

    async def result(self) -> SampleResult:
        """What came of the job.

        Raises:
            ApiError: the job failed; other exceptions are torch's own.
        """
        return await asyncio.shield(self._result)

    async def wait(self) -> None:
        """Returns when the job has ended, well or not."""
        await asyncio.wait([self._result])

    async def switch(self, *, slot: int, version: int) -> None:
        """Has what is not finished go on with the weights in another slot; returns when the old slot is not used."""
        await self._switch(slot, version)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[SampleDelta]:
        """The news of at least one sample; ends with the job, or raises why it failed."""
        while not self._waiting:
            if self._result.done():
                self._result.result()
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        deltas = [joined(each) for each in self._waiting.values()]
        self._waiting.clear()
        return deltas

    # For the engine's thread crossing.

    def push(self, delta: SampleDelta) -> None:
        self._waiting.setdefault(delta.index, []).append(delta)
        self._arrived.set()

    def settle(self, outcome: SampleResult | Exception) -> None:
        if self._result.done():
            return  # cancelled meanwhile
        if isinstance(outcome, Exception):
            self._result.set_exception(outcome)
        else:
            self._result.set_result(outcome)
        self._arrived.set()
