"""`MemoryCallOperator`: something is looked up; whether at all, and how often it is tried, can be tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farstep.trainers.chat import called
from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.operator import Operator
from farstep.trainers.operators.tunable import TunableSpec

MAX_RETRIES = 10


class MemoryCallOperator(Operator):
    """
    Args:
        recall: sync (called on a thread) or async; what it raises is raised when it was tried `1 + retries` times.
        nothing: what `execute` gives where the memory is not enabled.
    """

    def __init__(
        self, name: str, recall: Callable[..., Any], *, enabled: bool = True, retries: int = 0, nothing: Any = None
    ) -> None:
        if not callable(recall):
            raise TrainerError(f"a {type(recall).__name__} cannot be called", field="recall", stage="operator")
        bounds = {"minimum": 0, "maximum": MAX_RETRIES}
        specs = [TunableSpec("enabled", "boolean", enabled), TunableSpec("retries", "integer", retries, bounds)]
        super().__init__(name, specs)
        self._recall, self._nothing = recall, nothing

    async def _execute(self, **inputs: Any) -> Any:
        if not self["enabled"]:
            return self._nothing
        retries = self["retries"]
        for attempt in range(retries + 1):
            try:
                return await called(self._recall, **inputs)
            except Exception:
                if attempt == retries:
                    raise
        raise AssertionError("unreachable")
