"""`OperatorAgent`: operators, and a function that answers a row of the data with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from farstep.trainers.chat import called
from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.llm_call import LLMCallOperator
from farstep.trainers.operators.operator import Operator

Row = Any  # a mapping


class OperatorAgent:
    """
    Args:
        operators: what is tuned; names are theirs alone.
        run: of a row, sync or async, gives the output. Left out, the only operator, an LLM call, is given what its
            prompts ask for.

    Raises:
        TrainerError: there are no operators, or two of one name, or nobody knows how to run them.
    """

    def __init__(self, operators: Sequence[Operator] | Operator, run: Callable[[Row], Any] | None = None) -> None:
        self.operators = [operators] if isinstance(operators, Operator) else list(operators)
        check_operators(self.operators)
        if run is None and not (len(self.operators) == 1 and isinstance(self.operators[0], LLMCallOperator)):
            raise TrainerError("how are these operators run?", field="run", stage="validate",
                               hint="give a function of a row; one LLM call alone needs none")  # fmt: skip
        self._run = run

    async def __call__(self, row: Row) -> Any:
        if self._run is not None:
            return await called(self._run, row)
        operator = self.operators[0]
        assert isinstance(operator, LLMCallOperator)
        return await operator.execute(**{name: row[name] for name in sorted(operator.inputs) if name in row})


def check_operators(operators: object, *, field: str = "agent.operators") -> None:
    """Raises TrainerError where they are not a list of operators, each with a name of its own."""
    if not isinstance(operators, list | tuple) or not operators:
        raise TrainerError("no list of operators, or an empty one", field=field, stage="validate",
                           hint="agent = OperatorAgent([LLMCallOperator(…)], run)")  # fmt: skip
    names: set[str] = set()
    for index, operator in enumerate(operators):
        if not isinstance(operator, Operator):
            raise TrainerError(f"{type(operator).__name__} is no Operator", field=f"{field}[{index}]", stage="validate")
        if operator.name in names:
            raise TrainerError(f"two operators are called {operator.name!r}", field=f"{field}[{index}]",
                               stage="validate")  # fmt: skip
        names.add(operator.name)
