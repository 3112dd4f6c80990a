"""`TrajectoryItem`: one step of one agent on one task. Plain data; what goes into JSON comes out equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

from farstep.trainers.errors import DataError

Status = Literal["running", "completed", "failed", "dropped"]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrajectoryItem:
    """
    Args:
        step: of this agent on this task, from 0.
        timestamp: seconds since 1970.
        messages: of this step; `context` is what was said before them.
        tool_calls: `{id, name, arguments}` of each; arguments as JSON text.
        score: None: nobody has scored it.
    """

    id: str
    task_id: str
    agent_id: str = ""
    step: int = 0
    timestamp: float = 0.0
    input: str = ""
    messages: list[Message] = field(default_factory=list)
    context: list[Message] = field(default_factory=list)
    output: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    score: float | None = None
    status: Status = "completed"
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """
        Raises:
            DataError: a field is missing, unknown, or of another type.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"a {type(values).__name__} is no trajectory item", field="item")
        known = {each.name for each in fields(cls)}
        if unknown := sorted(str(name) for name in values.keys() - known):
            raise DataError("unknown", field=unknown[0], hint=f"there are {', '.join(sorted(known))}")
        if missing := sorted({"id", "task_id"} - values.keys()):
            raise DataError("missing", field=missing[0])
        item = cls(**values)
        for name, kinds in _KINDS.items():
            value = getattr(item, name)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise DataError(f"a {type(value).__name__} cannot be here", field=name)
        if item.status not in get_args(Status):
            raise DataError(f"{item.status!r} is none of {', '.join(get_args(Status))}", field="status")
        return item


_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "task_id", "agent_id", "input", "output", "status"), (str,)),
    **dict.fromkeys(("messages", "context", "tool_calls"), (list,)),
    "step": (int,),
    "timestamp": (int, float),
    "score": (int, float, type(None)),
    "metadata": (dict,),
}
