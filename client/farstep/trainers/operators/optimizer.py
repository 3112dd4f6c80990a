"""`OperatorOptimizer`: looks at cases (`backward`), then changes operators (`step`).

One of your own needs these two methods and nothing else. What else is here is used where it is there.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farstep.trainers.chat import Chat
from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.cases import Case
from farstep.trainers.operators.operator import Operator

Score = Callable[[Sequence[Any]], Awaitable[list[Case]]]


@dataclass(frozen=True, slots=True)
class Change:
    """Of one tunable. `reason`: why it was not made; empty where it was."""

    operator: str
    tunable: str
    before: Any
    after: Any
    reason: str = ""

    @property
    def is_made(self) -> bool:
        return not self.reason and self.before != self.after


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an optimizer works with.

    Args:
        chat: whom it may ask; None: nobody.
        score: runs the agent, as its operators are now, on rows.
        seed: of a question, by its number in this run.
    """

    operators: Sequence[Operator]
    chat: Chat | None
    score: Score
    seed: Callable[[], int]


class OperatorOptimizer(ABC):
    """`weak_below` and `num_weak`: cases with less than that score are weak, and so many of them are looked at."""

    def __init__(self, *, num_weak: int = 10, weak_below: float = 1.0) -> None:
        self.num_weak = num_weak
        self.weak_below = weak_below
        self._around: Surroundings | None = None

    def bind(self, around: Surroundings) -> None:
        """Called once, before the first `backward`."""
        self._around = around

    @abstractmethod
    async def backward(self, cases: Sequence[Case]) -> None:
        """Finds out what is wrong."""

    @abstractmethod
    async def step(self) -> list[Change]:
        """Changes operators, and says what."""

    def get_state(self) -> dict[str, Any]:
        """What is to be remembered from epoch to epoch, as JSON can hold it."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most remember nothing)
        """Of `get_state`."""

    @property
    def around(self) -> Surroundings:
        if self._around is None:
            raise TrainerError("this optimizer is not bound to operators yet", stage="operator", hint="call bind")
        return self._around

    @property
    def chat(self) -> Chat:
        if self.around.chat is None:
            raise TrainerError(f"{type(self).__name__} has nobody to ask", field="client", stage="operator",
                               hint="give the trainer client=, a SamplingClient or a function of messages")  # fmt: skip
        return self.around.chat

    def weak(self, cases: Sequence[Case]) -> list[Case]:
        """The worst first, and of equals the earlier."""
        return sorted((case for case in cases if case.score < self.weak_below), key=_score)[: self.num_weak]


def check_optimizer(given: object) -> None:
    """Raises TrainerError where it has no async `backward` and `step`."""
    for method in ("backward", "step"):
        if not inspect.iscoroutinefunction(getattr(given, method, None)):
            raise TrainerError(f"{type(given).__name__} has no async {method}", field="optimizer", stage="validate",
                               hint="async def backward(self, cases), async def step(self)")  # fmt: skip


def _score(case: Case) -> float:
    return case.score
