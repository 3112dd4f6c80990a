"""One sequence read from a sampler as it comes: asked for again where the stream breaks, and said on exactly.

The request has a seed, drawn here where the caller left it open, and the version that answered first is asked for
from then on. So the sequence that comes again is the same one, and what was delivered is left out of it
(`farstep_proto.resumption`); where it is not the same, the stream ends with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Literal

import numpy as np

from farstep import _retry
from farstep._connection import Connection
from farstep._convert import topk_rows
from farstep.errors import (
    FarstepError,
    NotFoundError,
    PolicyNotReadyError,
    RateLimitError,
    ServerShutdownError,
    TransportError,
    error_from_refusal,
)
from farstep.results import SampledToken
from farstep_proto import paths
from farstep_proto.resumption import Delivered, Differs
from farstep_proto.v1 import sampling_pb2 as pb

_PASSES = (TransportError, RateLimitError, ServerShutdownError)
_GONE = (NotFoundError, PolicyNotReadyError)
_HINT = "sample it anew, or use sample()"


class Inbox:
    """What has come of a stream and was not taken; for the background loop, but for its plain attributes."""

    def __init__(self) -> None:
        self.policy_version: int | None = None
        self.stop_reason: Literal["stop", "length"] | None = None
        self.prompt_cache_hit_tokens: int | None = None
        self._tokens: list[SampledToken] = []
        self._error: BaseException | None = None
        self._is_over = False
        self._changed = asyncio.Event()

    async def take(self) -> list[SampledToken]:
        """All there is, as soon as there is something; nothing at the end, or raises what ended it."""
        while not self._tokens and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        taken, self._tokens = self._tokens, []
        if not taken and self._error is not None:
            raise self._error
        return taken

    def push(self, event: pb.SampleEvent) -> None:
        match event.WhichOneof("event"):
            case "begin":
                self.policy_version = event.begin.policy_version
            case "delta":
                self._tokens += _tokens_of(event.delta, self.policy_version or 0)
                if event.delta.stop_reason:
                    self.stop_reason = "stop" if event.delta.stop_reason == "stop" else "length"
            case "end":
                self.prompt_cache_hit_tokens = event.end.prompt_cache_hit_tokens
        self._changed.set()

    def end(self, error: BaseException | None = None) -> None:
        self._error, self._is_over = error, True
        self._changed.set()


class Reading:
    """Reads one request's events into an inbox, to the end.

    Args:
        headers: the gate of the first attempt.
    """

    def __init__(self, connection: Connection, request: pb.SampleRequest, headers: Mapping[str, str]) -> None:
        self.inbox = Inbox()
        self._connection = connection
        self._request = request
        self._headers = headers
        self._delivered = Delivered()

    async def run(self) -> None:
        try:
            await self._read()
        except asyncio.CancelledError:
            self.inbox.end(TransportError("the stream was closed"))
            raise
        except Exception as error:  # handed to whoever reads
            self.inbox.end(error)
        else:
            self.inbox.end()

    async def _read(self) -> None:
        with _retry.Backoff(_retry.REQUEST_RETRY, what=f"a stream from {self._connection.url}") as backoff:
            while True:
                try:
                    await self._attempt(on_progress=backoff.succeed)
                except _GONE as error:
                    if not self._delivered.is_anything:
                        raise
                    message = f"the stream broke off, and its policy is gone: {error}"
                    raise TransportError(message, hint=_HINT) from error
                except _PASSES as error:
                    fault = error
                else:
                    return
                retry_after_s = fault.retry_after_s if isinstance(fault, RateLimitError) else None
                await self._connection.rest(backoff, fault, at_least_s=retry_after_s or 0.0)

    async def _attempt(self, *, on_progress: Callable[[], None]) -> None:
        self._delivered.start_again()
        if self._delivered.is_anything:
            self._request.in_flight = ""  # what goes on with newer versions does not come again
        body = self._request.SerializeToString()
        async with aclosing(self._connection.stream(paths.SAMPLE_STREAM, body, headers=self._gate())) as events:
            async for event in events:
                if event.WhichOneof("event") == "error":
                    raise error_from_refusal(event.error)
                try:
                    new = self._delivered.take(event)
                except Differs as differs:
                    message = f"the stream broke off, and does not go on as it was: {differs}"
                    raise FarstepError(message, hint=_HINT) from differs
                if new is not None:
                    self.inbox.push(new)
                    on_progress()
                if event.WhichOneof("event") == "end":
                    return
        raise TransportError(f"{self._connection.url} ended the stream before its end")

    def _gate(self) -> Mapping[str, str]:
        begin = self._delivered.begin
        if begin is None or not self._request.run_id:
            return self._headers
        return {paths.EXACT_POLICY_VERSION: str(begin.policy_version)}


def _tokens_of(delta: pb.SampleDelta, version: int) -> list[SampledToken]:
    tokens = np.frombuffer(delta.tokens, dtype="<i4").tolist()
    logprobs = np.frombuffer(delta.logprobs, dtype="<f4").tolist()
    versions = np.frombuffer(delta.policy_versions, dtype="<i8").tolist() or [version] * len(tokens)
    topk = topk_rows(delta.topk_logprobs) if delta.HasField("topk_logprobs") else [None] * len(tokens)
    return [SampledToken(*each) for each in zip(tokens, logprobs, versions, topk, strict=True)]
