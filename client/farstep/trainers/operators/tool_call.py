"""`ToolCallOperator`: a tool that a model may call; how it is described to the model can be tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farstep.trainers.chat import called
from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.operator import Operator
from farstep.trainers.operators.tunable import TunableSpec

MAX_CHARS = 4_000


class ToolCallOperator(Operator):
    """
    Args:
        function: sync (called on a thread) or async.
        parameters: JSON schema of its arguments.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        description: str,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(function):
            raise TrainerError(f"a {type(function).__name__} cannot be called", field="function", stage="operator")
        super().__init__(name, [TunableSpec("description", "text", description, {"max_chars": MAX_CHARS})])
        self._function = function
        self._parameters = dict(parameters or {"type": "object", "properties": {}})

    def schema(self) -> dict[str, Any]:
        """The tool's definition as the OpenAI API and chat templates take it, with the present description."""
        about = {"name": self.name, "description": self["description"], "parameters": self._parameters}
        return {"type": "function", "function": about}

    async def _execute(self, **inputs: Any) -> Any:
        return await called(self._function, **inputs)
