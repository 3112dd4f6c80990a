"""Which sequences run: requests join and leave the batch at any step.

Plain bookkeeping without tensors: what waits and whose turn it is, what runs, what must leave when memory is short.
The engine asks for one join after the other, computes its context, and calls `start`.

Projects take turns, and so do the clients of each; a client's requests are served in their order. When the cache is too
small for what runs, the sequence that joined last leaves; it keeps its tokens, waits before everyone else, and goes on
where it was.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from farstep_proto.tensors import IntArray
from farstep_sampler.account import Account
from farstep_sampler.logit_controls import SequenceControls
from farstep_sampler.prompt_look import PromptLook
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
    account: Account
    make_stops: Callable[[SampleJob], StopStrings | None]
    num_started: int = 0
    is_mixed: bool = False  # whether it was switched after something of it had been computed
    num_cached: int = 0
    num_sampled: int = 0  # tokens
    computed_s: float = 0.0  # its share of the passes that it was in
    finished: dict[int, SampleSequence] = field(default_factory=dict)
    first_version: int = field(init=False)  # the one that the answer names
    look: PromptLook = field(init=False)  # what was found in the prompt

    def __post_init__(self) -> None:
        self.first_version = self.version
        self.look = PromptLook(self.job)

    @property
    def num_unstarted(self) -> int:
        return self.job.num_samples - self.num_started if self.job.max_tokens else 0

    @property
    def num_final(self) -> int:
        """Tokens that each of its sequences has at most."""
        return len(self.job.prompt) + self.job.max_tokens

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

    @property
    def context(self) -> list[int]:
        """Everything but the last token: what must be in the cache for it to go on."""
        return [*self.group.job.prompt.tolist(), *self.tokens][:-1]

    def push(self, token: int, logprob: float) -> str | None:
        """Takes the next token; the reason if the sequence ends with it."""
        self.group.num_sampled += 1
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
    """Sequences about to run from one context, which they share; none where only the prompt is looked at.

    `num_tokens` is how long their rows are to be at first.
    """

    group: Group
    sequences: list[Sequence]
    context: list[int]
    num_tokens: int

    @property
    def is_resumed(self) -> bool:
        """Whether it goes on after it was preempted; the context then has more than the prompt."""
        return any(sequence.joined for sequence in self.sequences)


class Room(Protocol):
    def __call__(self, wanted: int, *, num_context: int, num_tokens: int) -> int:
        """How many of `wanted` rows for `num_tokens` each fit into the cache, besides a context."""
        ...


class Scheduler:
    """All that waits and runs.

    Args:
        max_rows: most sequences at a time.
        room: what the cache has room for; at least one row when nothing else is there.
    """

    def __init__(self, *, max_rows: int, room: Room) -> None:
        self.running: dict[Sequence, None] = {}
        # By project and by its client, whose turn it is first.
        self._waiting: OrderedDict[str, OrderedDict[str, deque[Group]]] = OrderedDict()
        self._resumed: deque[Sequence] = deque()
        self._starting: dict[Sequence, None] = {}  # their context is being computed
        self._max_rows = max_rows
        self._room = room
        self._num_joined = 0

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting or self._resumed)

    @property
    def num_waiting(self) -> int:
        """Requests of which no sequence has started."""
        return sum(
            not group.num_started
            for clients in self._waiting.values()
            for groups in clients.values()
            for group in groups
        )

    def add(self, group: Group) -> None:
        clients = self._waiting.setdefault(group.account.asker, OrderedDict())
        clients.setdefault(group.account.client, deque()).append(group)

    def next_join(self) -> Join | None:
        """What may be computed next; to be answered by `start` or `drop`. None: nothing, or no room for it yet."""
        if self._resumed:
            return self._resume()
        if not self._waiting:
            return None
        asker, clients = next(iter(self._waiting.items()))
        client, groups = next(iter(clients.items()))
        group = groups[0]
        num_tokens = min(len(group.job.prompt) + _HEADROOM_TOKENS, group.num_final)
        # Nobody's turn takes more than a fair share of the rows while others wait.
        share = -(-self._max_rows // (len(self._waiting) * len(clients)))
        free = self._max_rows - len(self.running) - len(self._starting)
        wanted = min(group.num_unstarted, share, free) if group.job.max_tokens else 1
        count = self._room(wanted, num_context=len(group.job.prompt), num_tokens=num_tokens) if wanted else 0
        if not count:
            return None
        count = count if group.job.max_tokens else 0
        join = Join(group, group.start(count), group.job.prompt[:-1].tolist(), num_tokens)
        self._starting |= dict.fromkeys(join.sequences)
        clients.move_to_end(client)
        self._waiting.move_to_end(asker)
        if not group.num_unstarted:
            self._remove(group)
        return join

    def start(self, join: Join) -> None:
        """Makes a join's sequences run."""
        for sequence in join.sequences:
            del self._starting[sequence]
            self._num_joined += 1
            sequence.joined = self._num_joined
            self.running[sequence] = None

    def preempt(self) -> Sequence:
        """Makes the sequence that joined last wait; the cache has no room for it."""
        assert len(self.running) > 1, "one sequence always fits"
        sequence = max(self.running, key=lambda s: s.joined)
        del self.running[sequence]
        self._resumed.appendleft(sequence)
        return sequence

    def drop(self, group: Group) -> list[Sequence]:
        """Forgets a group, whatever state it is in; those of its sequences that ran."""
        self._remove(group)
        self._resumed = deque(s for s in self._resumed if s.group is not group)
        self._starting = {s: None for s in self._starting if s.group is not group}
        ran = [sequence for sequence in self.running if sequence.group is group]
        for sequence in ran:
            del self.running[sequence]
        return ran

    def _resume(self) -> Join | None:
        sequence = self._resumed[0]
        num_tokens = min(sequence.position + 1 + _HEADROOM_TOKENS, sequence.group.num_final)
        if not self._room(1, num_context=sequence.position, num_tokens=num_tokens):
            return None
        self._starting[self._resumed.popleft()] = None
        return Join(sequence.group, [sequence], sequence.context, num_tokens)

    def _remove(self, group: Group) -> None:
        account = group.account
        clients = self._waiting.get(account.asker, OrderedDict())
        groups = clients.get(account.client)
        if groups is None or group not in groups:
            return
        groups.remove(group)
        if not groups:
            del clients[account.client]
        if not clients:
            del self._waiting[account.asker]
