"""`TokenStream`: the tokens of one sequence as they are sampled.

An iterator and an async iterator, for one reader. Leaving the loop, or the with-block, ends the stream, and the
sampler lets go of what it holds; what the reader has not taken by then is lost.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, Self

from farstep._loop import call_soon, run, run_async
from farstep._streaming import Inbox
from farstep.errors import ClientClosedError
from farstep.results import SampledToken

StopReason = Literal["stop", "length"]


class TokenStream:
    """Made by `SamplingClient.stream`, which has begun to ask.

    Raises, from the iteration:
        PolicyNotReadyError, RateLimitError, … : as `SamplingClient.sample` from `result()`.
        TransportError: the stream broke off, and cannot go on with exactly what it would have said.
    """

    def __init__(self, inbox: Inbox, reading: Future[None]) -> None:
        self._inbox = inbox
        self._reading = reading
        self._tokens: deque[SampledToken] = deque()
        self._is_closed = False
        # A stream that nobody closes and nobody holds any more is not read on.
        self._abandon = weakref.finalize(self, call_soon, reading.cancel)
        self._abandon.atexit = False

    @property
    def policy_version(self) -> int | None:
        """The version that the sequence began with; None before the first token."""
        return self._inbox.policy_version

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it ended; None where it has not, or was closed before."""
        return self._inbox.stop_reason

    @property
    def prompt_cache_hit_tokens(self) -> int | None:
        """How many of the prompt's tokens the sampler had computed before; None before the end."""
        return self._inbox.prompt_cache_hit_tokens

    def __next__(self) -> SampledToken:
        if not self._tokens:
            self._tokens += run(self._more())
        if not self._tokens:
            raise StopIteration
        return self._tokens.popleft()

    async def __anext__(self) -> SampledToken:
        if not self._tokens:
            self._tokens += await run_async(self._more())
        if not self._tokens:
            raise StopAsyncIteration
        return self._tokens.popleft()

    def __iter__(self) -> Iterator[SampledToken]:
        try:
            while (token := next(self, None)) is not None:
                yield token
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[SampledToken]:
        try:
            while (token := await anext(self, None)) is not None:
                yield token
        finally:
            self._close()

    def close(self) -> None:
        """Ends the stream here and at the sampler; closing it again does nothing."""
        self._close()

    async def aclose(self) -> None:
        """As `close`."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._is_closed = True
        self._tokens.clear()
        self._abandon()

    async def _more(self) -> list[SampledToken]:
        """At least one token, or none at the end."""
        if self._is_closed:
            if self._inbox.stop_reason is None:
                raise ClientClosedError("this stream was closed before its end")
            return []
        return await self._inbox.take()
