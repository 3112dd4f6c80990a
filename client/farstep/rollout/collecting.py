"""`Collector`: what the proxy sees of one attempt at one sample: its turns, and what it waits for.

Written by the proxy's thread, read when the agent has ended; a turn that comes later belongs to nobody.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from farstep.rollout.params import SamplingParams
from farstep.rollout.turns import Message, Turn, same_messages
from farstep.sampling import OpenAiEndpoint


@dataclass(slots=True)
class Collector:
    """Args:
    endpoint: of the policy that its turns are sampled from.
    problems: what went wrong with requests, by reason.
    in_flight: when each request under way began.
    """

    name: str
    params: SamplingParams
    endpoint: Callable[[], OpenAiEndpoint]
    seed_place: tuple[int, ...] = ()
    turns: list[Turn] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    num_requests: int = 0
    is_closed: bool = False
    began_at: float = field(default_factory=time.monotonic)
    in_flight: dict[int, float] = field(default_factory=dict)

    def add(self, turns: Sequence[Turn]) -> None:
        """Messages that came before are kept once, though each request brings all of them again."""
        if self.is_closed or not turns:
            return
        earlier = max((turn.messages for turn in self.turns), key=len, default=())
        messages = [*turns[0].messages]
        for index, (old, new) in enumerate(zip(earlier, messages, strict=False)):
            if old != new:
                break
            messages[index] = old
        shared = tuple(messages)
        self.turns.extend(replace(turn, messages=shared) for turn in turns)

    def take_number(self) -> int:
        """The next request's, counted from 0."""
        number, self.num_requests = self.num_requests, self.num_requests + 1
        return number

    @contextmanager
    def under_way(self, number: int) -> Iterator[None]:
        self.in_flight[number] = time.monotonic()
        try:
            yield
        finally:
            self.in_flight.pop(number, None)

    def prefix_of(self, messages: Sequence[Message]) -> list[int] | None:
        """The tokens of the longest dialogue so far that these messages go on with."""
        best: Turn | None = None
        for turn in self.turns:
            size = len(turn.messages) + 1
            if size > len(messages) or (best is not None and size <= len(best.messages) + 1):
                continue
            if same_messages([*turn.messages, turn.reply], messages[:size]):
                best = turn
        return None if best is None else [*best.prompt, *best.tokens]

    def describe(self) -> str:
        """What it waits for, in words."""
        now = time.monotonic()
        if self.in_flight:
            return f"{self.name}: the model, for {now - min(self.in_flight.values()):.0f} s"
        return f"{self.name}: the agent's own code, {len(self.turns)} turns so far"
