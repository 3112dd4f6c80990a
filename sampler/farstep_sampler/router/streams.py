"""Server-sent events from a replica through the router, as they come, and from another replica when it dies.

What a stream says follows from its version and its seed, so a replica that takes over says it all again: what was
delivered already is compared and left out. Where it says something else (the version is gone, or the sequence had
gone on with a newer one), the stream ends with an error event rather than with a wrong token.

It knows nothing of what events mean. Nothing is buffered but the event that is not whole yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from google.protobuf import json_format

from farstep_proto import paths
from farstep_proto.errors import ApiError, Internal
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.request import version_of
from farstep_sampler.router.backend import NobodyLeft, Router, Wanted
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.router.replica_http import RelayedError, ReplicaLost
from farstep_sampler.versions import Exactly, VersionGate

_ELSEWHERE = frozenset({425, 429, 503})
_END = b"\n\n"

Event = bytes


async def relay(
    router: Router,
    request: pb.SampleRequest,
    wanted: Wanted,
    *,
    path: str,
    same: Callable[[Event, Event], bool] = bytes.__eq__,
) -> AsyncIterator[Event]:
    """The events of a streaming route of the replicas, each with its blank line.

    The replica names the version that it samples in the header X-Policy-Version; another one that takes over is held
    to it. `same` tells whether two events say the same, where there is more in them than what was sampled.

    Raises:
        ApiError: before the first event; after it, the last event is `error`.
    """
    delivered: list[Event] = []
    gate: VersionGate | None = None
    error: ApiError | None = None
    attempts = router.attempts(wanted)
    try:
        async for link in attempts:
            body, headers = router.forwarded(request, wanted, gate=gate)
            try:
                with link.busy(wanted.num_sequences):
                    async with link.http.stream("POST", path, body, headers=headers) as response:
                        gate = _gate_of(response.headers.get(paths.EXACT_POLICY_VERSION)) or gate
                        num_seen = 0
                        async for event in _events_of(response.aiter_raw()):
                            num_seen += 1
                            if num_seen > len(delivered):
                                delivered.append(event)
                                yield event
                            elif not same(event, delivered[num_seen - 1]):
                                raise _different(link)
                        return
            except ReplicaLost as lost:
                error = Internal(f"the replica was lost in the middle of the stream: {lost}", retry_after_s=1.0)
            except RelayedError as caught:
                error = caught
                if caught.status not in _ELSEWHERE:
                    raise
    except ApiError as caught:
        final = error if isinstance(caught, NobodyLeft) and error is not None else caught
        if not delivered:
            raise final from None
        yield _error_event(final)
    finally:
        await attempts.aclose()


async def _events_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Whole events; what a stream breaks off with is dropped."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(_END)
        for event in events:
            yield event + _END


def _gate_of(header: str | None) -> VersionGate | None:
    return None if header is None else Exactly(version_of(header, paths.EXACT_POLICY_VERSION))


def _different(link: ReplicaLink) -> ApiError:
    return Internal(
        f"the replica was lost in the middle of the stream, and {link.url} samples something else",
        hint="ask again; streams that go on with newer versions cannot be taken over",
    )


def _error_event(error: ApiError) -> Event:
    text = json_format.MessageToJson(error.to_proto(), preserving_proto_field_name=True, indent=None)
    return f"event: error\ndata: {text}\n\n".encode()
