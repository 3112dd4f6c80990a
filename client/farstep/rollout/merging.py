"""Turns of one sample, merged into as few rows as their tokens allow.

A turn whose prompt begins with all tokens of a row goes on with that row; any other begins one. So no token of a row
was ever seen otherwise by the policy, and none is trained twice: where a template rewrites what was said earlier, the
row is split there, and the split counted.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from farstep.rollout.kinds import SpanKind
from farstep.rollout.spans import Spans
from farstep.rollout.turns import Turn

UNSAMPLED = -1  # instead of a version, for tokens that were given


@dataclass(slots=True)
class Row:
    """All [T]; `logprobs` is 0 and `versions` UNSAMPLED for tokens that were given."""

    tokens: list[int] = field(default_factory=list)
    is_sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kinds: list[SpanKind] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def goes_on_with(self, turn: Turn) -> bool:
        size = len(self.tokens)
        return len(turn.prompt) >= size and list(turn.prompt[:size]) == self.tokens

    def add(self, turn: Turn, prompt_kinds: Sequence[SpanKind], answer_kinds: Sequence[SpanKind]) -> None:
        given = list(turn.prompt[len(self.tokens) :])
        self.tokens += [*given, *turn.tokens]
        self.is_sampled += [False] * len(given) + [True] * len(turn.tokens)
        self.logprobs += [0.0] * len(given) + list(turn.logprobs)
        self.versions += [UNSAMPLED] * len(given) + list(turn.versions)
        self.kinds += [*prompt_kinds, *answer_kinds]
        self.turns.append(turn)

    @property
    def sampled_versions(self) -> list[int]:
        return [version for version in self.versions if version != UNSAMPLED]


@dataclass(frozen=True, slots=True)
class Merged:
    """`num_splits`: rows that were begun though an earlier one of the sample could have gone on."""

    rows: list[Row]
    num_splits: int


def merge(turns: Sequence[Turn], spans: Spans) -> Merged:
    """Rows of a sample's turns, in the order in which the turns were given.

    Several choices of one request begin rows of their own; the one that the dialogue goes on with is continued.
    """
    rows: list[Row] = []
    requests: set[str] = set()
    num_splits = 0
    last_request = turns[-1].request_id if turns else ""
    for turn in turns:
        row = max((row for row in rows if row.goes_on_with(turn)), key=lambda row: len(row.tokens), default=None)
        if row is None:
            is_sibling = bool(turn.request_id) and turn.request_id in requests
            num_splits += bool(rows) and not is_sibling
            row = Row()
            rows.append(row)
        requests.add(turn.request_id)
        start, known = len(row.tokens), len(row.turns[-1].messages) + 1 if row.turns else 0
        prompt_kinds = spans.prompt_kinds(turn, start=start, num_known=min(known, len(turn.messages)))
        row.add(turn, prompt_kinds, _final(turn, spans.answer_kinds(turn), last_request, turns[-1]))
    return Merged(rows, num_splits)


def _final(turn: Turn, kinds: list[SpanKind], last_request: str, last: Turn) -> list[SpanKind]:
    """The text that ends the dialogue is its final one, in each choice of the last request."""
    is_last = turn is last or (bool(last_request) and turn.request_id == last_request)
    if not is_last or turn.tool_calls:
        return kinds
    return [SpanKind.FINAL] * len(kinds)
