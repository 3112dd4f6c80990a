"""Which sequences run: requests join and leave the batch at any step.

Plain bookkeeping without tensors: what waits, what runs in which row, what must leave when memory is short.
The engine asks `admit` for joins, computes their context, and calls `start`; row r of the engine is
`running[r]` at all times, and every removal answers with the moves that keep the rows dense.

Order is first come, first served. When the cache is too small for what runs, the sequence that joined last
leaves; it keeps its tokens, waits before everyone else, and goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from farstep_proto.tensors import IntArray
from farstep_sampler.logit_controls import SequenceControls
from farstep_sampler.request import SampleJob
from farstep_sampler.result import FloatArray, SampleSequence
from farstep_sampler.sampling import Draws
from farstep_sampler.stops import StopStrings

_HEADROOM_TOKENS = 64  # a sequence joins only if it can go on for a while


@dataclass(slots=True, eq=False)
class Group:
    """One job in the engine: the prompt that its samples share, and what became of each."""

    ticket: int
    job: SampleJob
    slot: int
    version: int  # of the weights in the slot
    streams: bool  # whether somebody watches it grow
    make_stops: Callable[[SampleJob], StopStrings | None]
    num_started: int = 0
    finished: dict[int, SampleSequence] = field(default_factory=dict)

    @property
    def num_unstarted(self) -> int:
        return self.job.num_samples - self.num_started

    def start(self, count: int) -> list[Sequence]:
        indices = range(self.num_started, self.num_started + count)
        self.num_started += count
        return [
            Sequence(self, i, Draws(self.job.seed, i), self.make_stops(self.job), SequenceControls.of(self.job))
            for i in indices
        ]


@dataclass(slots=True, eq=False)
class Sequence:
    """One sample while it grows. `topk_ids` and `topk_logprobs` hold an array [K] a token, where asked for."""

    group: Group
    index: int
    draws: Draws
    stops: StopStrings | None
    controls: SequenceControls | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk_ids: list[IntArray] = field(default_factory=list)
    topk_logprobs: list[FloatArray] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)  # which weights chose each token
    joined: int = 0  # the number of its last joining; 0: it has not run yet

    @property
    def last_token(self) -> int:
        return self.tokens[-1] if self.tokens else int(self.group.job.prompt[-1])

    @property
    def position(self) -> int:
        """Where the last token stands; everything before it is in the cache of a running sequence."""
        return len(self.group.job.prompt) - 1 + len(self.tokens)

    def push(self, token: int, logprob: float) -> str | None:
        """Takes the next token; the reason if the sequence ends with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.versions.append(self.group.version)
        job = self.group.job
        may_end = len(self.tokens) > job.min_tokens
        is_match = self.stops is not None and self.stops.push(token, may_match=may_end)
        if is_match or token in job.stop_tokens:
            return "stop"
        if len(self.tokens) == job.max_tokens:
            return "length"
        if self.controls is not None:
            self.controls.push(token)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """Sequences about to run from one context, which they share; none where only the prompt is looked at."""

    group: Group
    sequences: list[Sequence]
    context: list[int]  # what must be in the cache: everything but the last token

    @property
    def is_resumed(self) -> bool:
        """Whether it goes on after it was preempted; the context then has more than the prompt."""
        return any(sequence.joined for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Move:
    """The sequence in row `source` now belongs into row `target`."""

    source: int
    target: int


class Scheduler:
    """All that waits and runs.

    Args:
        max_rows: most sequences at a time.
        fits: whether the cache can hold that many rows of that many tokens; one row must always fit.
        prefill_tokens: about how many context tokens may join in one step.
    """

    def __init__(self, *, max_rows: int, fits: Callable[[int, int], bool], prefill_tokens: int) -> None:
        self.running: list[Sequence] = []
        self._waiting: deque[Group] = deque()
        self._resumed: deque[Sequence] = deque()
        self._max_rows = max_rows
        self._fits = fits
        self._prefill_tokens = prefill_tokens
        self._num_joined = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._waiting or self._resumed)

    @property
    def num_waiting(self) -> int:
        """Requests of which no sequence has started."""
        return sum(1 for group in self._waiting if not group.num_started)

    def add(self, group: Group) -> None:
        self._waiting.append(group)

    def admit(self) -> list[Join]:
        """The joins of this step; each must be answered by `start` or `drop`."""
        joins: list[Join] = []
        room = _Room(self)
        while self._resumed and room.take(self._resumed[0].position, 1):
            sequence = self._resumed.popleft()
            context = [*sequence.group.job.prompt.tolist(), *sequence.tokens[:-1]]
            joins.append(Join(sequence.group, [sequence], context))
        while self._waiting and not self._resumed:
            group = self._waiting[0]
            count = room.take(len(group.job.prompt) - 1, group.num_unstarted if group.job.max_tokens else 0)
            if count is None:
                break
            joins.append(Join(group, group.start(count), group.job.prompt[:-1].tolist()))
            if not group.num_unstarted or not group.job.max_tokens:
                self._waiting.popleft()
        return joins

    def start(self, join: Join) -> range:
        """Makes a join's sequences run; their rows."""
        first = len(self.running)
        for sequence in join.sequences:
            self._num_joined += 1
            sequence.joined = self._num_joined
            self.running.append(sequence)
        return range(first, len(self.running))

    def remove(self, rows: Iterable[int]) -> list[Move]:
        """Takes rows out; the last sequences move into the holes, each at most once."""
        leaving = set(rows)
        num_left = len(self.running) - len(leaving)
        holes = sorted(row for row in leaving if row < num_left)
        movers = [row for row in range(num_left, len(self.running)) if row not in leaving]
        for source, target in zip(movers, holes, strict=True):
            self.running[target] = self.running[source]
        del self.running[num_left:]
        return [Move(source, target) for source, target in zip(movers, holes, strict=True)]

    def preempt(self) -> list[Move]:
        """Makes the sequence that joined last wait; the cache has no room for it."""
        assert len(self.running) > 1, "one sequence always fits"
        row = max(range(len(self.running)), key=lambda r: self.running[r].joined)
        self._resumed.appendleft(self.running[row])
        return self.remove([row])

    def drop(self, group: Group) -> list[Move]:
        """Forgets a group, whatever state it is in."""
        if group in self._waiting:
            self._waiting.remove(group)
        self._resumed = deque(s for s in self._resumed if s.group is not group)
        return self.remove(row for row, sequence in enumerate(self.running) if sequence.group is group)

    def groups(self) -> Iterator[Group]:
        """Those of the running sequences, each once."""
        yield from dict.fromkeys(sequence.group for sequence in self.running)

    def longest(self) -> int:
        """Tokens that the cache must hold a row for the next step."""
        return max((sequence.position + 1 for sequence in self.running), default=0)


class _Room:
    """What one step may still take in."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._num_rows = len(scheduler.running)
        self._longest = scheduler.longest()
        self._num_tokens = 0

    def take(self, num_context: int, wanted: int) -> int | None:
        """How many of `wanted` rows may join behind a context; None: not now. Wanting no row is a matter of tokens."""
        limits = self._scheduler
        if self._num_tokens and self._num_tokens + num_context > limits._prefill_tokens:
            return None
        count = min(wanted, limits._max_rows - self._num_rows)
        longest = max(self._longest, num_context + _HEADROOM_TOKENS)
        while count > 0 and self._num_rows + count > 1 and not limits._fits(self._num_rows + count, longest):
            count -= 1
        if wanted and count <= 0:
            return None
        self._num_tokens += num_context
        self._num_rows += count
        self._longest = max(self._longest, longest) if count else self._longest
        return count
