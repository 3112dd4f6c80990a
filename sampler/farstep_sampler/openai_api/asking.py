"""One prompt of a request on its way to the backend and back: whole, or event by event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.events import Events
from farstep_sampler.openai_api.choices import Gain, Reader
from farstep_sampler.submissions import Submissions, Work
from farstep_sampler.versions import VersionGate
from farstep_serving.keys import Caller


class Sampling(Protocol):
    """What the API needs of a backend."""

    def prepare(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Work: ...

    def open_stream(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Events: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt's request, and who reads its answer."""

    prompt: Sequence[int]
    request: pb.SampleRequest
    gate: VersionGate
    reader: Reader


async def whole(
    asks: Sequence[Ask], backend: Sampling, submissions: Submissions, caller: Caller
) -> list[pb.SampleResponse]:
    """All answers, in order; where one fails the others are cancelled. Raises ApiError."""
    works = [backend.prepare(ask.request, ask.gate, caller) for ask in asks]

    async def run(work: Work) -> pb.SampleResponse:
        with submissions.watched():
            return await work()

    tasks = [asyncio.ensure_future(run(work)) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Gains = AsyncGenerator[tuple[Ask, Gain | None], None]


def streamed(asks: Sequence[Ask], backend: Sampling, count: Callable[[Events], Events], caller: Caller) -> Gains:
    """The gains of all asks as they come; None tells that an ask has begun.

    Raises:
        ApiError: at once for what is wrong with a request, from the iteration for what happens to it.
    """
    opened = [(ask, count(backend.open_stream(ask.request, ask.gate, caller))) for ask in asks]
    return _merged(opened)


async def _merged(opened: Sequence[tuple[Ask, Events]]) -> Gains:
    """Several streams as one; a reader who is slow holds all of them up, and the engine joins what they say."""
    news: asyncio.Queue[tuple[Ask, Gain | None]] = asyncio.Queue(maxsize=1)

    async def read(ask: Ask, events: Events) -> None:
        async with contextlib.aclosing(events):
            async for event in events:
                gain = ask.reader.read(event)
                if gain is not None or event.HasField("begin"):
                    await news.put((ask, gain))

    tasks = [asyncio.create_task(read(ask, events)) for ask, events in opened]
    ended = asyncio.gather(*tasks)
    try:
        while not (ended.done() and news.empty()):
            getting = asyncio.ensure_future(news.get())
            try:
                await asyncio.wait((getting, ended), return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield getting.result()
            finally:
                getting.cancel()
            if ended.done():
                ended.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if ended.done() and not ended.cancelled():
            ended.exception()
