"""`TunableSpec`: one thing of an operator that may be changed, what it is now, and what it may become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.template import placeholders

Kind = Literal["prompt", "text", "boolean", "integer", "number", "choice"]
_CONSTRAINTS: Mapping[str, frozenset[str]] = {
    "prompt": frozenset({"placeholders", "max_chars"}),
    "text": frozenset({"max_chars"}),
    "boolean": frozenset(),
    "integer": frozenset({"minimum", "maximum"}),
    "number": frozenset({"minimum", "maximum"}),
    "choice": frozenset({"choices"}),
}


@dataclass(frozen=True, slots=True)
class TunableSpec:
    """
    Args:
        kind: a "prompt" is a text with placeholders, which it has to keep.
        constraints: `placeholders` and `max_chars` of texts, `minimum` and `maximum` of numbers, `choices`.
    """

    name: str
    kind: Kind
    value: Any
    constraints: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = _CONSTRAINTS.get(self.kind)
        if known is None:
            raise TrainerError(f"{self.kind!r} is no kind", field="kind", hint=f"one of {', '.join(_CONSTRAINTS)}")
        if unknown := sorted(self.constraints.keys() - known):
            raise TrainerError(f"{self.kind} has no constraint {unknown[0]!r}", field="constraints",
                               hint=f"it has {', '.join(sorted(known)) or 'none'}")  # fmt: skip
        self.check(self.value)

    def check(self, value: Any) -> None:
        """Raises TrainerError where this cannot become `value`."""
        if mistake := self.mistake(value):
            raise TrainerError(mistake, field=self.name, stage="operator")

    def mistake(self, value: Any) -> str:
        """Why this cannot become `value`; empty where it can."""
        match self.kind:
            case "prompt" | "text":
                return self._text_mistake(value)
            case "boolean":
                return "" if isinstance(value, bool) else f"{value!r} is neither True nor False"
            case "integer" | "number":
                return self._number_mistake(value)
            case "choice":
                choices = list(self.constraints.get("choices", ()))
                return "" if value in choices else f"{value!r} is none of {choices!r}"

    def changed(self, value: Any) -> Self:
        """The same with another value; raises TrainerError where it cannot have that."""
        return replace(self, value=value)

    def _text_mistake(self, value: Any) -> str:
        if not isinstance(value, str):
            return f"a {type(value).__name__} is no text"
        limit = self.constraints.get("max_chars")
        if limit is not None and len(value) > limit:
            return f"{len(value)} characters are more than {limit}"
        wanted = self.constraints.get("placeholders") if self.kind == "prompt" else None
        if wanted is None:
            return ""
        found, wanted = placeholders(value), frozenset(wanted)
        lost, new = sorted(wanted - found), sorted(found - wanted)
        if lost:
            return f"the placeholder {{{lost[0]}}} is lost"
        return f"{{{new[0]}}} is a placeholder that nobody fills" if new else ""

    def _number_mistake(self, value: Any) -> str:
        kinds = int if self.kind == "integer" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            return f"{value!r} is no {'whole ' if self.kind == 'integer' else ''}number"
        low, high = self.constraints.get("minimum"), self.constraints.get("maximum")
        if low is not None and value < low:
            return f"{value} is less than {low}"
        return f"{value} is more than {high}" if high is not None and value > high else ""
