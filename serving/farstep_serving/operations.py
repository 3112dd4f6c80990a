"""Operations and their outcomes: opened once per id, finished once, delivered until acknowledged.

The table decides nothing about when work runs; it remembers what was submitted and what came of it. It
lives on the event loop: other threads hand their outcomes over with `loop.call_soon_threadsafe`.

What is acknowledged is kept a little longer, for a submission whose answer was lost and which is repeated only then,
and for people who look; so little of it that a server's memory does not grow with the operations it has done.

Invariant: an id that was opened is either pending, or holds exactly one outcome, until it expires.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from farstep_proto.errors import Conflict, Draining, NotFound
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import operations_pb2 as pb
from farstep_serving.retention import Retention, RetentionLimits

MAX_POLL_BYTES = 32 << 20
MAX_POLL_S = 60.0
_LISTENS_S = 2.0  # a client that has not asked for so long has gone, as far as a server that ends is concerned


@dataclass(slots=True)
class _Entry:
    """There may be thousands: an entry that nobody waits for costs its outcome and some 400 bytes."""

    clients: tuple[str, ...]  # who submitted it and has not acknowledged its outcome
    verb: str
    digest: bytes
    state: pb.OperationState
    outcome: bytes = b""  # a serialized Operation, once there is one
    done: asyncio.Event | None = None  # once somebody waits for this one alone
    is_fetched: bool = False  # some client has acknowledged it


@dataclass(slots=True)
class _Channel:
    """What one client has yet to hear."""

    heard_at: float  # when it last asked, or submitted
    undelivered: OrderedDict[str, None] = field(default_factory=OrderedDict)
    unheard: set[str] = field(default_factory=set)  # of these, those that were in no answer yet
    num_pending: int = 0
    num_polls: int = 0  # parked here now: a client that lost its connection asks again before the first has ended
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class OperationTable:
    """All operations of one server.

    Args:
        retention_s: how long an acknowledged outcome can still be asked for, if there are not too many:
        max_retained, max_retained_bytes: acknowledged outcomes beyond these are dropped, oldest first.
        unclaimed_s: how long an outcome is kept that nobody ever acknowledges.
        queue_place: tells how many operations are before a queued one.
        on_acknowledged: hears that a client has an outcome; on_dropped: that nobody can ask for one any more.
    """

    def __init__(
        self,
        *,
        retention_s: float = 3600.0,
        unclaimed_s: float = 86_400.0,
        max_retained: int = 4096,
        max_retained_bytes: int = 32 << 20,
        queue_place: Callable[[str], int] = lambda operation_id: 0,
        clock: Callable[[], float] = time.monotonic,
        on_acknowledged: Callable[[str, str], None] = lambda operation_id, client_id: None,
        on_dropped: Callable[[str], None] = lambda operation_id: None,
    ) -> None:
        self.instance_id = uuid.uuid4().hex
        self._queue_place = queue_place
        self._clock = clock
        self._on_acknowledged = on_acknowledged
        self._on_dropped = on_dropped
        self._entries: dict[str, _Entry] = {}
        self._channels: dict[str, _Channel] = {}
        self._retention = Retention(
            RetentionLimits(retention_s, unclaimed_s, max_retained, max_retained_bytes),
            clock,
            num_bytes_of=lambda operation_id: len(self._entries[operation_id].outcome),
        )
        self._draining = False
        self._num_pending = 0
        self._used_at = clock()

    @property
    def num_pending(self) -> int:
        """How many were opened and have no outcome yet."""
        return self._num_pending

    @property
    def num_unclaimed(self) -> int:
        """How many have an outcome that somebody has yet to acknowledge."""
        return self._retention.num_unclaimed

    @property
    def idle_s(self) -> float:
        """For how long nothing has been pending."""
        return 0.0 if self._num_pending else self._clock() - self._used_at

    def open(self, operation_id: str, *, client_id: str, verb: str, digest: bytes) -> bool:
        """Enters a submission; False if it is there already, with the same content.

        Raises:
            Conflict: the id is there with other content.
            Draining: the server takes nothing new.
        """
        if self.repeats(operation_id, digest, client_id=client_id):
            return False
        if self._draining:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        self._expire()
        self._entries[operation_id] = _Entry((client_id,), sys.intern(verb), digest, pb.OPERATION_STATE_QUEUED)
        channel = self._channel(client_id)
        channel.num_pending += 1
        channel.heard_at = self._clock()
        self._num_pending += 1
        return True

    def repeats(self, operation_id: str, digest: bytes, *, client_id: str) -> bool:
        """Whether a submission is there, with the same content; then its outcome goes to this client as well.

        Raises:
            Conflict: the id is there with other content.
        """
        known = self._entries.get(operation_id)
        if known is None:
            return False
        if known.digest != digest:
            raise Conflict(f"{operation_id} was submitted before with different content", field="seq")
        self._tell_also(client_id, operation_id, known)
        return True

    def forget_lost(self, operation_id: str, digest: bytes) -> None:
        """Before a repetition is entered: forgets an outcome that says only that there was nobody to do it (503).

        For work that changes nothing, so that a repetition may do what the first one could not have done. A server that
        is draining keeps it: it would not take the repetition.
        """
        entry = self._entries.get(operation_id)
        if entry is None or not entry.outcome or entry.digest != digest or self._draining:
            return
        if pb.Operation.FromString(entry.outcome).error.status != Draining.status:
            return
        self._retention.forget(operation_id)
        self._drop(operation_id)

    def list_of(self, prefix: str, *, unfetched: bool) -> list[pb.Operation]:
        """Operations whose ids begin so, without outcomes; `unfetched`: only those that no client has acknowledged."""
        return [
            pb.Operation(operation_id=operation_id, state=entry.state, verb=entry.verb)
            for operation_id, entry in self._entries.items()
            if operation_id.startswith(prefix) and not (unfetched and entry.is_fetched)
        ]

    def restore(
        self, operation_id: str, *, clients: Sequence[str], verb: str, digest: bytes, outcome: bytes = b""
    ) -> None:
        """Enters what an earlier process had: pending, or with its serialized outcome, which `clients` still want."""
        state = pb.Operation.FromString(outcome).state if outcome else pb.OPERATION_STATE_QUEUED
        entry = self._entries[operation_id] = _Entry(tuple(clients), sys.intern(verb), digest, state, outcome)
        entry.is_fetched = bool(outcome) and not clients
        for client_id in clients:
            self._tell(client_id, operation_id, entry)
        if not outcome:
            self._num_pending += 1
            return
        self._retention.keep(operation_id)
        if not clients:
            self._retention.acknowledge(operation_id)

    def clients(self, operation_id: str) -> tuple[str, ...]:
        """Those that submitted an operation and have not acknowledged its outcome."""
        entry = self._entries.get(operation_id)
        return () if entry is None else entry.clients

    def sealed(self, operation_id: str, outcome: pb.Operation) -> bytes:
        """An outcome as it will be delivered. `outcome` needs its state and outcome only."""
        outcome.operation_id = operation_id
        outcome.verb = self._entries[operation_id].verb
        return outcome.SerializeToString()

    def digest(self, operation_id: str) -> bytes:
        return self._entries[operation_id].digest

    def set_running(self, operation_id: str) -> None:
        self._entries[operation_id].state = pb.OPERATION_STATE_RUNNING

    def finish(self, operation_id: str, outcome: pb.Operation) -> None:
        """Records the outcome and wakes whoever waits for it. `outcome` needs its state and outcome only."""
        self.finish_sealed(operation_id, self.sealed(operation_id, outcome), state=outcome.state)

    def finish_sealed(self, operation_id: str, outcome: bytes, *, state: pb.OperationState) -> None:
        """The same with what `sealed` gave."""
        entry = self._entries[operation_id]
        assert not entry.outcome, f"{operation_id} finished twice"
        self._num_pending -= 1
        self._used_at = self._clock()
        entry.state = state
        entry.outcome = outcome
        if entry.done is not None:
            entry.done.set()
        self._retention.keep(operation_id)
        for client_id in entry.clients:
            self._channel(client_id).num_pending -= 1
            self._tell(client_id, operation_id, entry)

    def fail(self, operation_id: str, error: common_pb2.Error) -> None:
        self.finish(operation_id, pb.Operation(state=pb.OPERATION_STATE_FAILED, error=error))

    def cancel(self, operation_id: str) -> None:
        """Records that a queued operation was dropped."""
        self.finish(operation_id, cancelled())

    def is_pending(self, operation_id: str) -> bool:
        entry = self._entries.get(operation_id)
        return entry is not None and not entry.outcome

    def is_queued(self, operation_id: str) -> bool:
        entry = self._entries.get(operation_id)
        return entry is not None and entry.state == pb.OPERATION_STATE_QUEUED

    @property
    def is_settled(self) -> bool:
        """Whether every client that still listens has heard of every outcome, and waits for none."""
        listens_since = self._clock() - _LISTENS_S
        return not any(
            (channel.num_pending or channel.unheard) and (channel.num_polls or channel.heard_at > listens_since)
            for channel in self._channels.values()
        )

    async def poll(self, request: pb.PollRequest) -> pb.PollResponse:
        """Answers as soon as anything of this client's is finished, with all that is (up to MAX_POLL_BYTES)."""
        self._acknowledge(request.client_id, request.ack)
        self._hold(request.client_id, request.held)
        self._expire()
        unknown = self._claim(request.client_id, request.check)
        channel = self._channel(request.client_id)
        channel.num_polls += 1
        try:
            if not channel.undelivered and not unknown and not self._draining:
                await _wait(channel.changed, min(request.wait_s, MAX_POLL_S))
            channel.changed.clear()
            response = pb.PollResponse(instance_id=self.instance_id, unknown=unknown, num_pending=channel.num_pending)
            self._collect(channel, response)
        finally:
            channel.num_polls -= 1
            channel.heard_at = self._clock()
            self._forget_if_idle(request.client_id, channel)
        return response

    async def wait(self, operation_id: str, wait_s: float) -> pb.Operation:
        """One operation, waiting up to `wait_s` for its outcome.

        Raises:
            NotFound: the server knows no such operation.
        """
        entry = self._entry(operation_id)
        if not entry.outcome and not self._draining:
            entry.done = entry.done or asyncio.Event()
            await _wait(entry.done, min(wait_s, MAX_POLL_S))
        if entry.outcome:
            return pb.Operation.FromString(entry.outcome)
        place = self._queue_place(operation_id) if entry.state == pb.OPERATION_STATE_QUEUED else 0
        return pb.Operation(operation_id=operation_id, state=entry.state, verb=entry.verb, queue_place=place)

    def drain(self) -> None:
        """Takes nothing new from now on and lets every parked poll go."""
        self._draining = True
        for channel in self._channels.values():
            channel.changed.set()
        for entry in self._entries.values():
            if entry.done is not None:
                entry.done.set()

    def _entry(self, operation_id: str) -> _Entry:
        entry = self._entries.get(operation_id)
        if entry is None:
            raise NotFound(f"no operation {operation_id!r}", field="operation_id")
        return entry

    def _channel(self, client_id: str) -> _Channel:
        return self._channels.setdefault(client_id, _Channel(self._clock()))

    def _tell(self, client_id: str, operation_id: str, entry: _Entry) -> None:
        """Has a client hear of an outcome, now or when there is one."""
        channel = self._channel(client_id)
        if entry.outcome:
            channel.undelivered[operation_id] = None
            channel.unheard.add(operation_id)
            channel.changed.set()
        else:
            channel.num_pending += 1

    def _tell_also(self, client_id: str, operation_id: str, entry: _Entry) -> None:
        if client_id not in entry.clients:
            entry.clients += (client_id,)
            self._tell(client_id, operation_id, entry)

    def _claim(self, client_id: str, operation_ids: Iterable[str]) -> list[str]:
        """Has a client hear of operations that it waits for, whoever submitted them; returns those unknown."""
        unknown = []
        for operation_id in operation_ids:
            entry = self._entries.get(operation_id)
            if entry is None:
                unknown.append(operation_id)
            else:
                self._tell_also(client_id, operation_id, entry)
        return unknown

    def _forget_if_idle(self, client_id: str, channel: _Channel) -> None:
        if not (channel.num_pending or channel.undelivered or channel.num_polls):
            del self._channels[client_id]

    def _collect(self, channel: _Channel, response: pb.PollResponse) -> None:
        num_bytes = 0
        for operation_id in channel.undelivered:
            outcome = self._entries[operation_id].outcome
            num_bytes += len(outcome)
            if response.finished and num_bytes > MAX_POLL_BYTES:
                return
            response.finished.append(pb.Operation.FromString(outcome))
            channel.unheard.discard(operation_id)

    def _acknowledge(self, client_id: str, operation_ids: Iterable[str]) -> None:
        channel = self._channel(client_id)
        for operation_id in operation_ids:
            entry = self._entries.get(operation_id)
            if entry is None or not entry.outcome or client_id not in entry.clients:
                continue
            channel.undelivered.pop(operation_id, None)
            channel.unheard.discard(operation_id)
            entry.is_fetched = True
            entry.clients = tuple(each for each in entry.clients if each != client_id)
            self._on_acknowledged(operation_id, client_id)
            if not entry.clients and self._retention.acknowledge(operation_id):
                entry.done = None

    def _hold(self, client_id: str, operation_ids: Iterable[str]) -> None:
        """Does not deliver again what has arrived; it is kept until it is acknowledged all the same."""
        channel = self._channel(client_id)
        for operation_id in operation_ids:
            channel.undelivered.pop(operation_id, None)
            channel.unheard.discard(operation_id)

    def _expire(self) -> None:
        for operation_id in self._retention.overdue():
            self._drop(operation_id)

    def _drop(self, operation_id: str) -> None:
        self._on_dropped(operation_id)
        for client_id in self._entries.pop(operation_id).clients:
            channel = self._channel(client_id)
            channel.undelivered.pop(operation_id, None)
            channel.unheard.discard(operation_id)


def cancelled() -> pb.Operation:
    """The outcome of a queued operation that was dropped."""
    error = common_pb2.Error(error_class="CancelledError", message="cancelled before it started", status=409)
    return pb.Operation(state=pb.OPERATION_STATE_CANCELLED, error=error)


async def _wait(event: asyncio.Event, wait_s: float) -> None:
    if wait_s <= 0:
        return
    try:
        await asyncio.wait_for(event.wait(), wait_s)
    except TimeoutError:
        return
