"""What became of the rows: how many there were, were used, cut, left out, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(slots=True)
class DataReport:
    """Counts. rows = used + dropped_no_targets + dropped_too_long, whatever happened.

    Of sequences: `truncated` were cut, `carried` begin with what was over the length of the one before,
    `split_turns` are of conversations that became several, of which `dropped_turns` were left out.
    """

    rows: int = 0
    used: int = 0
    sequences: int = 0
    tokens: int = 0
    targets: int = 0
    truncated: int = 0
    tokens_cut: int = 0
    carried: int = 0
    split_turns: int = 0
    retokenized: int = 0
    prompts_cut: int = 0
    dropped_turns: int = 0
    dropped_no_targets: int = 0
    dropped_too_long: int = 0
    longest: int = 0

    def add(self, other: DataReport) -> None:
        """Counts of other rows as well."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            setattr(self, one.name, max(mine, theirs) if one.name == "longest" else mine + theirs)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """One line for people: what is zero is left out, but for the totals."""
        always = ("rows", "used", "tokens", "targets")
        shown = {key: value for key, value in self.to_dict().items() if value or key in always}
        return ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in shown.items())
