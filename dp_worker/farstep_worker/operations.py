"""The queue: which submitted operation runs next.

Pure bookkeeping without sockets or torch; the clock is handed in. Any thread may call, and each call is one step.
Within a run operations leave in seq order, whatever order they came in. Across runs the one whose operations
have cost the fewest tokens goes first (start-time fair queueing: a run that was idle starts at the present
level, so that it can neither save up nor owe).

Invariant: a seq of a run is passed once, by running, by having been cancelled, or by being given up
after a gap before it stayed open too long; what was passed never comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from farstep_proto.errors import Conflict, Draining, PayloadTooLarge, TooManyRequests
from farstep_worker.submission import Call

GAP_WAIT_S = 86_400.0  # a laptop may sleep in the middle of its submissions
CROWDED_GAP_WAIT_S = 120.0  # where what waits behind a gap takes the room of others
MAX_MISSING = 1000
RETRY_AFTER_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """One operation as it waits: what to do, and what it weighs."""

    run_id: str
    seq: int
    call: Call
    num_bytes: int

    @property
    def operation_id(self) -> str:
        return operation_id(self.run_id, self.seq)

    @property
    def cost(self) -> int:
        return max(1, self.call.num_tokens)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    max_operations: int = 20_000
    max_bytes: int = 1 << 30


@dataclass(slots=True)
class _Line:
    """One run's operations. A cancelled one leaves `None` in its place."""

    next_seq: int = 1
    last_seq: int = 0
    num_live: int = 0
    used_tokens: int = 0
    is_ready: bool = False
    gap_since: float | None = None
    waiting: dict[int, Work | None] = field(default_factory=dict)

    def skip_cancelled(self) -> None:
        while self.next_seq in self.waiting and self.waiting[self.next_seq] is None:
            del self.waiting[self.next_seq]
            self.next_seq += 1

    def head(self) -> Work | None:
        return self.waiting.get(self.next_seq)

    def live(self) -> Iterator[Work]:
        return (work for _, work in sorted(self.waiting.items()) if work is not None)


Method = Callable[Concatenate["OperationQueue", P], T]


def _one_step(method: Method[P, T]) -> Method[P, T]:
    @wraps(method)
    def locked(self: OperationQueue, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class OperationQueue:
    def __init__(self, *, limits: QueueLimits | None = None, gap_wait_s: float = GAP_WAIT_S) -> None:
        self._lock = threading.RLock()
        self._limits = limits or QueueLimits()
        self._gap_wait_s = gap_wait_s
        self._lines: dict[str, _Line] = {}
        self._level = 0
        self._num_operations = 0
        self._num_bytes = 0
        self._closed = False

    @_one_step
    def check_room(self, run_id: str, seq: int, *, num_bytes: int, held_bytes: int = 0) -> None:
        """Refuses an operation that does not fit beside `held_bytes` of others that are still coming in.

        The operation that its run waits for is never told to come later.

        Raises:
            Draining: the queue is closed.
            PayloadTooLarge: it would not fit into an empty queue either.
            TooManyRequests: it would fit later.
        """
        if self._closed:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        if num_bytes > self._limits.max_bytes:
            raise PayloadTooLarge(f"the operation is larger than {self._limits.max_bytes} bytes", field="body")
        if seq == self._awaited_seq(run_id):
            return
        is_full = self._num_operations >= self._limits.max_operations
        if is_full or self._num_bytes + held_bytes + num_bytes > self._limits.max_bytes:
            raise TooManyRequests(
                f"{self._num_operations} operations with {self._num_bytes + held_bytes} bytes are waiting already",
                retry_after_s=RETRY_AFTER_S,
            )

    @_one_step
    def check_seq(self, run_id: str, seq: int) -> None:
        """Refuses a seq that cannot come any more.

        Raises:
            Conflict: it is taken or was passed.
        """
        line = self._lines.get(run_id)
        if line is not None and (seq < line.next_seq or seq in line.waiting):
            raise Conflict(
                f"seq {seq} of run {run_id} was passed; the next is {self.first_free_seq(run_id)}",
                field="seq",
                hint="it ran and its outcome is no longer kept, or later operations failed for want of it",
            )

    @_one_step
    def put(self, work: Work, *, now: float) -> None:
        """Enters an operation; raises as `check_seq` and `check_room` do."""
        self.check_seq(work.run_id, work.seq)
        self.check_room(work.run_id, work.seq, num_bytes=work.num_bytes)
        line = self._lines.setdefault(work.run_id, _Line())
        line.waiting[work.seq] = work
        line.last_seq = max(line.last_seq, work.seq)
        self._count(line, work, 1)
        self._settle(line, now=now)

    @_one_step
    def restore(self, run_id: str, *, next_seq: int, passed: frozenset[int]) -> None:
        """A run's line as an earlier process left it, without what waits: that is put. `passed` will not come."""
        line = self._lines[run_id] = _Line(next_seq=next_seq, last_seq=max([next_seq - 1, *passed]))
        line.waiting.update(dict.fromkeys(passed))
        line.skip_cancelled()

    @_one_step
    def take(self, *, now: float) -> Work | None:
        """Removes and returns the operation that runs next; None where nothing can run."""
        ready = [line for line in self._lines.values() if line.is_ready]
        if not ready:
            return None
        return self._take_from(min(ready, key=lambda line: line.used_tokens), now=now)

    def _take_from(self, line: _Line, *, now: float) -> Work:
        work = line.waiting.pop(line.next_seq)
        assert work is not None
        line.next_seq += 1
        self._level = max(self._level, line.used_tokens)
        line.used_tokens += work.cost
        self._count(line, work, -1)
        self._settle(line, now=now)
        return work

    @_one_step
    def take_group(self, *, now: float, joins: Callable[[Call, Call], bool], most: int) -> list[Work]:
        """`take`, and with it the heads of other runs that may join it, those that have used least first."""
        first = self.take(now=now)
        if first is None or most == 1 or not joins(first.call, first.call):
            return [] if first is None else [first]
        group = [first]
        for line in sorted(self._lines.values(), key=lambda line: line.used_tokens):
            head = line.head()
            if head is not None and head.run_id != first.run_id and joins(head.call, first.call):
                group.append(self._take_from(line, now=now))
            if len(group) == most:
                break
        return group

    @_one_step
    def cancel(self, wanted: str, *, now: float) -> bool:
        """Drops a waiting operation; its seq stays taken. False where it does not wait."""
        run_id, seq = split_operation_id(wanted)
        line = self._lines.get(run_id)
        work = line.waiting.get(seq) if line is not None else None
        if line is None or work is None:
            return False
        line.waiting[seq] = None
        self._count(line, work, -1)
        self._settle(line, now=now)
        return True

    @_one_step
    def touch_gap(self, run_id: str, seq: int, *, now: float) -> None:
        """A part of the missing operation came: the wait for it begins anew."""
        line = self._lines.get(run_id)
        if line is not None and seq == line.next_seq and line.gap_since is not None:
            line.gap_since = now

    @_one_step
    def next_deadline(self) -> float | None:
        """When the gap that has been open longest will be given up."""
        since = [line.gap_since for line in self._lines.values() if line.gap_since is not None]
        return min(since) + self._gap_wait_s if since else None

    @_one_step
    def give_up_gaps(self, *, now: float, crowded: bool = False) -> list[tuple[Work, int]]:
        """Removes operations that waited too long for an earlier one: each with the seq that is missing.

        Args:
            crowded: there is no room for others; then it is soon too long.
        """
        overdue: list[tuple[Work, int]] = []
        wait_s = min(self._gap_wait_s, CROWDED_GAP_WAIT_S) if crowded else self._gap_wait_s
        for line in self._lines.values():
            if line.gap_since is None or now < line.gap_since + wait_s:
                continue
            for work in line.live():
                overdue.append((work, line.next_seq))
                self._count(line, work, -1)
            line.next_seq = line.last_seq + 1
            line.waiting.clear()
            line.gap_since = None
        return overdue

    @_one_step
    def first_free_seq(self, run_id: str) -> int:
        """The first seq after every one that was received."""
        line = self._lines.get(run_id)
        return 1 if line is None else max(line.next_seq, line.last_seq + 1)

    @_one_step
    def missing_seqs(self, run_id: str, *, below: int) -> list[int]:
        """Those that have not come, the first MAX_MISSING of them."""
        line = self._lines.get(run_id) or _Line()
        missing: list[int] = []
        expected = line.next_seq
        for seq in sorted([*(seq for seq in line.waiting if seq < below), below]):
            missing += range(expected, min(seq, expected + MAX_MISSING - len(missing)))
            expected = seq + 1
        return missing

    @_one_step
    def is_waiting(self, run_id: str) -> bool:
        """Whether anything of a run waits."""
        line = self._lines.get(run_id)
        return line is not None and line.num_live > 0

    @_one_step
    def place(self, wanted: str) -> int:
        """About how many operations run before a waiting one: its run's earlier ones, and as many of each other run."""
        run_id, seq = split_operation_id(wanted)
        own = self._lines.get(run_id)
        if own is None:
            return 0
        earlier = max(0, min(seq - own.next_seq, own.num_live - 1))
        return earlier + sum(min(earlier + 1, line.num_live) for line in self._lines.values() if line is not own)

    @_one_step
    def forget(self, run_id: str) -> list[Work]:
        """Drops a run with all that waits of it, which is returned. Its numbers are free again."""
        line = self._lines.pop(run_id, None)
        left = [] if line is None else list(line.live())
        for work in left:
            self._num_operations -= 1
            self._num_bytes -= work.num_bytes
        return left

    @_one_step
    def close(self) -> list[Work]:
        """Takes nothing from now on, and returns what will not run."""
        self._closed = True
        left = [work for line in self._lines.values() for work in line.live()]
        self._lines.clear()
        self._num_operations = self._num_bytes = 0
        return left

    @property
    def num_operations(self) -> int:
        """Those that wait."""
        return self._num_operations

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    @property
    def is_closed(self) -> bool:
        return self._closed

    def _awaited_seq(self, run_id: str) -> int:
        line = self._lines.get(run_id)
        return 1 if line is None else line.next_seq

    def _count(self, line: _Line, work: Work, sign: int) -> None:
        line.num_live += sign
        self._num_operations += sign
        self._num_bytes += sign * work.num_bytes

    def _settle(self, line: _Line, *, now: float) -> None:
        """Keeps `is_ready` and `gap_since` true: since when operations wait for one that is not there."""
        line.skip_cancelled()
        was_ready, line.is_ready = line.is_ready, line.head() is not None
        if line.is_ready and not was_ready:
            line.used_tokens = max(line.used_tokens, self._level)
        if line.is_ready or not line.num_live:
            line.gap_since = None
        elif line.gap_since is None:
            line.gap_since = now


def operation_id(run_id: str, seq: int) -> str:
    return f"{run_id}:{seq}"


def split_operation_id(text: str) -> tuple[str, int]:
    """The reverse; seq 0 where the text is no operation's id."""
    run_id, _, seq = text.rpartition(":")
    return run_id, int(seq) if seq.isdecimal() else 0
