"""Bodies on their way in: bounded in size, in time, and together in memory.

A body that nobody sends is not waited for: each piece has `idle_s` to come, and after the first seconds the whole has
to come at a rate that any line manages. What is large is decoded on another thread, a few at a time, since a message
can take many times the memory of its bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Container, Iterator
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from farstep_proto.errors import BodyTimeout, InvalidInput, PayloadTooLarge, TooManyRequests, UnsupportedEncoding

T = TypeVar("T")

MAX_BODY_BYTES = 16 << 20  # larger ones, where they are taken at all, are decoded one at a time
INLINE_BYTES = 64 << 10  # what is decoded on the loop: another thread would cost more than it saves


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """
    Args:
        grace_s: from when on a body must have come at `min_bytes_per_s`, counted from its beginning.
        max_bytes: of all large bodies that are on their way at a time.
        max_decoding: so many large bodies are decoded at a time.
    """

    idle_s: float = 30.0
    grace_s: float = 30.0
    min_bytes_per_s: float = 32 << 10
    max_bytes: int = 256 << 20
    max_decoding: int = 4


class Bodies:
    """Of one server."""

    def __init__(self, limits: BodyLimits | None = None) -> None:
        self._limits = limits or BodyLimits()
        self._num_bytes = 0
        self._decoding = asyncio.Semaphore(self._limits.max_decoding)
        self._decoding_alone = asyncio.Lock()

    async def read(self, request: Request, *, limit: int, encodings: Container[str] = ()) -> bytes:
        """The whole body as it came; raises as `held`."""
        async with self.held(request, limit=limit, encodings=encodings) as body:
            return body

    @contextlib.asynccontextmanager
    async def held(self, request: Request, *, limit: int, encodings: Container[str] = ()) -> AsyncIterator[bytes]:
        """The whole body as it came, never more than `limit` bytes of it; it is on its way as long as it is held.

        Args:
            encodings: those of `Content-Encoding` that whoever reads can undo.

        Raises:
            PayloadTooLarge: before reading, where the length is declared; else as soon as it is passed.
            UnsupportedEncoding: it is compressed.
            BodyTimeout: it does not come.
            TooManyRequests: too much is on its way already.
        """
        _check_encoding(request, encodings)
        if declared_bytes(request) > limit:
            raise _too_large(limit)
        body = bytearray()
        num_bytes = 0
        try:
            await self._receive(request, body, limit)
            num_bytes, whole = len(body), bytes(body)
            body.clear()
            yield whole
        finally:
            self._num_bytes -= _counted(max(num_bytes, len(body)))

    @contextlib.contextmanager
    def grown(self, num_bytes: int) -> Iterator[None]:
        """Of a body that is held and was opened: so much more is on its way. Raises TooManyRequests as `held`."""
        num_bytes = _counted(num_bytes)
        self._count(num_bytes)
        try:
            yield
        finally:
            self._num_bytes -= num_bytes

    async def head(self, request: Request, *, num_bytes: int) -> bytes:
        """The beginning of a body that is too large to be taken, as far as it comes; the rest is not read."""
        head = bytearray()
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(self._limits.idle_s):
                async for part in request.stream():
                    head += part[: num_bytes - len(head)]
                    if len(head) == num_bytes:
                        break
        return bytes(head)

    async def _receive(self, request: Request, body: bytearray, limit: int) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._limits.idle_s) as patience:
                async for part in request.stream():
                    self._take(body, part, limit)
                    overall = self._limits.grace_s + len(body) / self._limits.min_bytes_per_s
                    patience.reschedule(min(loop.time() + self._limits.idle_s, started + overall))
        except TimeoutError as error:
            raise BodyTimeout(f"the body did not come: {len(body)} bytes are here", field="body") from error
        except ClientDisconnect as error:  # nobody is left to hear it, and it is no mistake of ours to be logged
            raise InvalidInput(f"the connection ended after {len(body)} bytes of the body", field="body") from error

    def _take(self, body: bytearray, part: bytes, limit: int) -> None:
        before = _counted(len(body))
        if len(body) + len(part) > limit:
            raise _too_large(limit)
        self._count(_counted(len(body) + len(part)) - before)
        body += part

    def _count(self, num_bytes: int) -> None:
        if num_bytes and self._num_bytes + num_bytes > self._limits.max_bytes:
            raise TooManyRequests("too many large bodies are on their way", retry_after_s=1.0)
        self._num_bytes += num_bytes

    @contextlib.asynccontextmanager
    async def decoding(self, num_bytes: int) -> AsyncIterator[None]:
        """A place among those who decode, for a body of that size; the largest are alone among their like."""
        async with (
            self._decoding_alone if num_bytes > MAX_BODY_BYTES else contextlib.nullcontext(),
            self._decoding if num_bytes > INLINE_BYTES else contextlib.nullcontext(),
        ):
            yield

    async def decoded(self, num_bytes: int, decode: Callable[[], T]) -> T:
        """What `decode` makes of a body of that size."""
        async with self.decoding(num_bytes):
            return decode() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(decode)


def declared_bytes(request: Request) -> int:
    """How long a body is said to be; 0 where nothing is said."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else 0


def bodies_of(request: Request) -> Bodies:
    bodies = request.app.state.bodies
    assert isinstance(bodies, Bodies)
    return bodies


async def read_body(request: Request, *, limit: int = MAX_BODY_BYTES, encodings: Container[str] = ()) -> bytes:
    """As `Bodies.read`."""
    return await bodies_of(request).read(request, limit=limit, encodings=encodings)


def _counted(num_bytes: int) -> int:
    """Small bodies get through, however many large ones there are."""
    return num_bytes if num_bytes > INLINE_BYTES else 0


def _check_encoding(request: Request, taken: Container[str]) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity") and encoding not in taken:
        raise UnsupportedEncoding(f"a body in Content-Encoding {encoding!r}", field="body", hint="send it as it is")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {limit} bytes", field="body", hint="send the data in several parts"
    )
