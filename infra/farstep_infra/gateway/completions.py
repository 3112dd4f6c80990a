"""Which samples of a sampling session have ended, in the order in which they did: for clients that ask for lists.

It is an index and no more: results are fetched by `retrieve_future`, which needs nothing of this. What ended before
this process began is not in it, and a client that has listened to an earlier process is told so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from farstep_infra.gateway.request_ids import RequestId
from farstep_proto.errors import NotFound
from farstep_proto.v1 import operations_pb2

_SEQS_PER_CLONE = 10**9  # as the SDK numbers the samples of clients that were copied
_MAX_LINES = 10_000
_MAX_KEPT = 20_000  # of one client's
_MAX_TOLD = 1_000  # in one answer
_PLACES = 2**40


@dataclass(frozen=True, slots=True)
class Completion:
    request_id: str
    failed: bool
    num_bytes: int = 0


@dataclass(slots=True)
class _Line:
    """Of one client: what has ended, and how many were dropped from its beginning."""

    ended: deque[Completion] = field(default_factory=deque)
    request_ids: set[str] = field(default_factory=set)  # of those
    num_dropped: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def end(self) -> int:
        return self.num_dropped + len(self.ended)

    def drop(self) -> None:
        self.request_ids.discard(self.ended.popleft().request_id)
        self.num_dropped += 1


class Completions:
    def __init__(self) -> None:
        self._is_released = False
        self._epoch = 1 + secrets.randbelow(2**20)
        self._lines: OrderedDict[tuple[str, int], _Line] = OrderedDict()

    def note(self, request_id: str, *, failed: bool, num_bytes: int = 0) -> None:
        """That request has ended; what is no sample does not matter here."""
        try:
            wanted = RequestId.parse(request_id)
        except NotFound:
            return
        if wanted.kind != "sample":
            return
        line = self._line(wanted.owner, wanted.seq // _SEQS_PER_CLONE)
        if request_id in line.request_ids:
            return  # a repeated submission, whose outcome came again
        line.request_ids.add(request_id)
        line.ended.append(Completion(request_id, failed, num_bytes))
        if len(line.ended) > _MAX_KEPT:
            line.drop()
        line.changed.set()

    def note_outcome(self, operation: operations_pb2.Operation) -> None:
        """The same of an operation, whose id is that of its request where it is a sample."""
        is_done = operation.WhichOneof("outcome") == "sample"
        self.note(operation.operation_id, failed=not is_done, num_bytes=operation.ByteSize() if is_done else 0)

    async def after(
        self, sampling_session_id: str, clone: int, *, cursor: int, wait_s: float
    ) -> tuple[list[Completion], int]:
        """What has ended since that cursor, as soon as anything has, and the cursor to go on from.

        Raises:
            NotFound: the cursor is an earlier process's.
        """
        line = self._line(sampling_session_id, clone)
        epoch, place = divmod(cursor, _PLACES)
        if cursor and epoch != self._epoch:
            raise NotFound(
                "the server was started anew, and does not know what ended before",
                field="prev_cursor",
                hint="ask for each result by retrieve_future",
            )
        while line.num_dropped < min(place, line.end):  # the client has seen them
            line.drop()
        if place >= line.end and wait_s > 0 and not self._is_released:
            line.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(line.changed.wait(), wait_s)
        start = max(0, place - line.num_dropped)
        told = list(islice(line.ended, start, start + _MAX_TOLD))
        return told, self._epoch * _PLACES + line.num_dropped + start + len(told)

    def release(self) -> None:
        """Lets everybody go who waits, now and later."""
        self._is_released = True
        for line in self._lines.values():
            line.changed.set()

    def _line(self, sampling_session_id: str, clone: int) -> _Line:
        key = (sampling_session_id, clone)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        self._lines.move_to_end(key)
        while len(self._lines) > _MAX_LINES:
            self._lines.popitem(last=False)
        return line
