"""`ToolOptimizer`: looks for a tool's best description with a beam: generate → score → select → refine.

A description is scored by the agent itself, on the rows that it was weak on and some that it was good at. The
present description is among the candidates: what is worse than it is not taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from farstep.trainers.operators.cases import Case, accuracy_of
from farstep.trainers.operators.optimizer import Change, OperatorOptimizer
from farstep.trainers.operators.tool_call import ToolCallOperator

TUNABLE = "description"
_DESCRIPTION = re.compile(r"<description>\s*(.*?)\s*</description>", re.DOTALL | re.IGNORECASE)
_SHOWN = 5

_WRITER = (
    "You write the description of a tool, by which an assistant knows when to call it and with what. You are given the "
    "tool, its present description, and cases that went badly. Write a better description between <description> and "
    "</description>, and nothing else."
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """`cases`: those by which it was scored."""

    description: str
    score: float
    cases: Sequence[Case]


class ToolOptimizer(OperatorOptimizer):
    """
    Args:
        operators: names of tools; None: all that the agent has.
        beam_width: so many descriptions are kept of each round, and so many new ones are made of each that is kept.
        num_rounds: the first generates, the others refine.
        num_good: rows beside the weak ones that descriptions are scored on.
    """

    def __init__(
        self,
        operators: Iterable[str] | None = None,
        *,
        beam_width: int = 3,
        num_rounds: int = 2,
        num_weak: int = 10,
        num_good: int = 5,
        weak_below: float = 1.0,
    ) -> None:
        super().__init__(num_weak=num_weak, weak_below=weak_below)
        self._names = None if operators is None else frozenset(operators)
        self._beam_width, self._num_rounds, self._num_good = beam_width, num_rounds, num_good
        self._cases: list[Case] = []

    @property
    def operators(self) -> list[ToolCallOperator]:
        every = [each for each in self.around.operators if isinstance(each, ToolCallOperator)]
        return [each for each in every if self._names is None or each.name in self._names]

    async def backward(self, cases: Sequence[Case]) -> None:
        weak = self.weak(cases)
        good = [case for case in cases if case.score >= self.weak_below][: self._num_good]
        self._cases = [*weak, *good] if weak else []

    async def step(self) -> list[Change]:
        cases, self._cases = self._cases, []
        return [await self._improve(operator, cases) for operator in self.operators] if cases else []

    async def _improve(self, operator: ToolCallOperator, cases: Sequence[Case]) -> Change:
        before = operator[TUNABLE]
        rows = [case.input for case in cases]
        seen = {before}
        beam = [Candidate(before, accuracy_of(cases), cases)]
        try:
            for _ in range(self._num_rounds):
                made = [text for kept in beam for text in await self._generate(operator, kept, seen)]
                scored = [await self._scored(operator, text, rows) for text in made]
                beam = sorted([*beam, *scored], key=lambda each: -each.score)[: self._beam_width]
        except BaseException:
            operator.set(TUNABLE, before)
            raise
        operator.set(TUNABLE, beam[0].description)
        reason = "" if beam[0].description != before else f"none of {len(seen) - 1} others is better"
        return Change(operator.name, TUNABLE, before, beam[0].description, reason)

    async def _generate(self, operator: ToolCallOperator, kept: Candidate, seen: set[str]) -> list[str]:
        """New descriptions from one that was kept; none that was seen before or cannot be."""
        spec = next(each for each in operator.get_tunables() if each.name == TUNABLE)
        messages = [
            {"role": "system", "content": _WRITER},
            {"role": "user", "content": _asked(operator, kept, self.weak(kept.cases)[:_SHOWN])},
        ]
        made = []
        for _ in range(self._beam_width):
            found = _DESCRIPTION.search((await self.chat(messages, seed=self.around.seed())).text)
            if found and found[1] and found[1] not in seen and not spec.mistake(found[1]):
                seen.add(found[1])
                made.append(found[1])
        return made

    async def _scored(self, operator: ToolCallOperator, description: str, rows: Sequence[object]) -> Candidate:
        operator.set(TUNABLE, description)
        cases = await self.around.score(rows)
        return Candidate(description, accuracy_of(cases), cases)


def _asked(operator: ToolCallOperator, kept: Candidate, weak: Sequence[Case]) -> str:
    about = [
        f"Tool: {operator.name}",
        f"Arguments: {operator.schema()['function']['parameters']}",
        f"Description:\n<description>\n{kept.description}\n</description>",
        f"Score: {kept.score:.3g}",
    ]
    for case in weak:
        calls = [dict(trace.inputs) for trace in case.traces if trace.operator == operator.name]
        right = f"; right is {case.answer}" if case.answer is not None else ""
        about.append(f"Asked {case.question!r}, the assistant called it with {calls or 'nothing'} and answered "
                     f"{case.error or case.output!r}{right}")  # fmt: skip
    return "\n\n".join(about)
