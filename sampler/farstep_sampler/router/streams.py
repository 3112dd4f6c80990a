"""A stream of samples from a replica through the router, event by event, and from another replica when it dies.

What a stream says follows from its version and its seed, so a replica that takes over is held to the version and says
it all again: what was delivered already is compared and left out. Where it says something else (the version is gone,
or the sequence had gone on with a newer one), the stream ends with an error rather than with a wrong token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing

import httpx
from google.protobuf.message import DecodeError

from farstep_proto import paths
from farstep_proto.errors import ApiError, Internal
from farstep_proto.framing import Unframer
from farstep_proto.resumption import Delivered, Differs
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.events import Events
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.router.replica_http import NobodyLeft, RelayedError, ReplicaLost
from farstep_sampler.versions import Exactly, VersionGate

_ELSEWHERE = frozenset({425, 429, 503})

Attempts = AsyncGenerator[ReplicaLink, None]
# The body and headers of an attempt, held to a version where one was begun.
Forward = Callable[[VersionGate | None], tuple[bytes, Mapping[str, str]]]


async def relay(attempts: Attempts, forward: Forward, *, num_sequences: int, wait_s: float) -> Events:
    """The events of one replica after another, said once.

    Args:
        wait_s: how long a replica may take for its first word beyond what it takes otherwise.

    Raises:
        ApiError: the replica's own, or that none is left; with what was delivered before.
    """
    delivered = Delivered()
    error: ApiError | None = None
    try:
        async for link in attempts:
            try:
                with link.busy(num_sequences):
                    async with aclosing(_attempt(link, forward, delivered, wait_s=wait_s)) as events:
                        async for event in events:
                            yield event
                return
            except ReplicaLost as lost:
                error = Internal(f"the replica was lost in the middle of the stream: {lost}", retry_after_s=1.0)
            except RelayedError as caught:
                error = caught
                if caught.status not in _ELSEWHERE:
                    raise
    except NobodyLeft as nobody:
        raise error or nobody from None
    finally:
        await attempts.aclose()


async def _attempt(link: ReplicaLink, forward: Forward, delivered: Delivered, *, wait_s: float) -> Events:
    """What one replica says to the end, without what was delivered; raises ReplicaLost where it breaks off."""
    begin = delivered.begin
    body, headers = forward(None if begin is None else Exactly(begin.policy_version))
    delivered.start_again()
    async with link.http.stream("POST", paths.SAMPLE_STREAM, body, headers=headers, wait_s=wait_s) as response:
        async for event in _events_of(response):
            if event.WhichOneof("event") == "error":
                raise RelayedError(event.error)
            try:
                new = delivered.take(event)
            except Differs as differs:
                raise _different(link, differs) from differs
            if new is not None:
                yield new
            if event.WhichOneof("event") == "end":
                return
    raise ReplicaLost(f"{link.url} ended the stream before its end")


async def _events_of(response: httpx.Response) -> AsyncIterator[pb.SampleEvent]:
    """Raises ReplicaLost for what is no stream of events."""
    unframer = Unframer()
    async for chunk in response.aiter_raw():
        try:
            events = [pb.SampleEvent.FromString(data) for data in unframer.push(chunk)]
        except (DecodeError, ValueError) as error:
            raise ReplicaLost(f"{response.request.url} says what is no event: {error}") from error
        for event in events:
            yield event


def _different(link: ReplicaLink, differs: Differs) -> ApiError:
    return Internal(
        f"the replica was lost in the middle of the stream, and {link.url} samples something else: {differs}",
        hint="ask again; streams that go on with newer versions cannot be taken over",
    )
