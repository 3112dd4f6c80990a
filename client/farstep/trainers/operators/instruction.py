"""`InstructionOptimizer`: has weak cases criticized, and the system prompt rewritten by what was said of them.

A rewritten prompt has the placeholders of the old one, all and no others; what has not is sent back with the reason,
and after `num_attempts` left out. The answer is what stands in <prompt> … </prompt>.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from farstep.trainers.chat import together
from farstep.trainers.operators.cases import Case
from farstep.trainers.operators.llm_call import LLMCallOperator
from farstep.trainers.operators.optimizer import Change, OperatorOptimizer
from farstep.trainers.operators.template import placeholders

TUNABLE = "system_prompt"
_PROMPT = re.compile(r"<prompt>\s*(.*?)\s*</prompt>", re.DOTALL | re.IGNORECASE)

_CRITIC = (
    "You look at one answer of an assistant that scored badly. Say in one or two sentences what its instruction "
    "should say differently, so that answers to questions of this kind become right. Speak of the instruction in "
    "general, not of this one question."
)
_WRITER = (
    "You improve the instruction (system prompt) of an assistant. You are given the instruction and what critics say "
    "of answers that it led to. Write the whole improved instruction between <prompt> and </prompt>, and nothing else. "
    "Keep what works. Keep every placeholder, a name in braces, exactly as it is written; add none."
)


class InstructionOptimizer(OperatorOptimizer):
    """
    Args:
        operators: names of LLM calls; None: all that the agent has.
        num_weak: at most so many weak cases are criticized.
        num_attempts: so often a rewritten prompt is asked for until one can be taken.
    """

    def __init__(
        self,
        operators: Iterable[str] | None = None,
        *,
        num_weak: int = 10,
        weak_below: float = 1.0,
        num_attempts: int = 3,
    ) -> None:
        super().__init__(num_weak=num_weak, weak_below=weak_below)
        self._names = None if operators is None else frozenset(operators)
        self._num_attempts = num_attempts
        self._critiques: dict[str, list[str]] = {}

    @property
    def operators(self) -> list[LLMCallOperator]:
        every = [each for each in self.around.operators if isinstance(each, LLMCallOperator)]
        return [each for each in every if self._names is None or each.name in self._names]

    async def backward(self, cases: Sequence[Case]) -> None:
        weak = self.weak(cases)
        asked = [(operator, case) for operator in self.operators for case in weak if _is_of(operator, case)]
        said = await together(self._criticized(operator, case) for operator, case in asked)
        self._critiques = {operator.name: [] for operator in self.operators}
        for (operator, _), critique in zip(asked, said, strict=True):
            if critique:
                self._critiques[operator.name].append(critique)

    async def step(self) -> list[Change]:
        critiques, self._critiques = self._critiques, {}
        return [await self._rewrite(each, critiques[each.name]) for each in self.operators if critiques.get(each.name)]

    async def _criticized(self, operator: LLMCallOperator, case: Case) -> str:
        about = [
            f"Instruction:\n{operator[TUNABLE] or '(none)'}",
            f"Question:\n{case.question}",
            f"Answer:\n{case.error or case.output}",
            f"Score: {case.score:.3g}",
        ]
        if case.answer is not None:
            about.insert(3, f"Right answer:\n{case.answer}")
        for trace in (each for each in case.traces if each.operator == operator.name):
            about.append(f"The assistant was given {dict(trace.inputs)!r} and said:\n{trace.error or trace.output}")
        messages = [{"role": "system", "content": _CRITIC}, {"role": "user", "content": "\n\n".join(about)}]
        return (await self.chat(messages, seed=self.around.seed())).text.strip()

    async def _rewrite(self, operator: LLMCallOperator, critiques: Sequence[str]) -> Change:
        before = operator[TUNABLE]
        spec = next(each for each in operator.get_tunables() if each.name == TUNABLE)
        kept = ", ".join(f"{{{name}}}" for name in sorted(placeholders(before))) or "none"
        listed = "\n".join(f"- {critique}" for critique in critiques)
        asked = f"Instruction:\n<prompt>\n{before}\n</prompt>\n\nPlaceholders: {kept}\n\nCritics say:\n{listed}"
        messages = [{"role": "system", "content": _WRITER}, {"role": "user", "content": asked}]
        mistake, after = "", before
        for _ in range(self._num_attempts):
            reply = await self.chat(messages, seed=self.around.seed())
            found = _PROMPT.search(reply.text)
            after = found[1] if found else before
            mistake = spec.mistake(after) if found and after else "there is nothing between <prompt> and </prompt>"
            if not mistake:
                operator.set(TUNABLE, after)
                return Change(operator.name, TUNABLE, before, after)
            complaint = f"This cannot be taken: {mistake}. Write it again."
            messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": complaint}]
        return Change(operator.name, TUNABLE, before, after, f"after {self._num_attempts} attempts: {mistake}")


def _is_of(operator: LLMCallOperator, case: Case) -> bool:
    """Whether the operator had a part in the case; where nobody knows, it had."""
    return not case.traces or any(trace.operator == operator.name for trace in case.traces)
