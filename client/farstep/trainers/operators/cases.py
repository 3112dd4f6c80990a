"""`Case`: a row of the data, what the agent made of it, and how good that was; and how an agent comes to its cases.

Invariant: as many cases as rows, in their order. A row on which the agent fails is a case with score 0 and its error.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farstep.trainers.chat import called, threads, together
from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.traces import Trace, traced

if TYPE_CHECKING:
    from farstep.rollout.records import RewardRecord
    from farstep.rollout.rewards import Reward

_INPUTS = ("input", "prompt", "question", "messages")
_ANSWERS = ("answer", "output", "solution", "solutions", "response", "target", "label")


@dataclass(frozen=True, slots=True)
class Case:
    """
    Args:
        input: the row, or what the evaluation function says was asked.
        output: the agent's; None where it failed.
        score: more is better; 1 is full marks.
        answer: what the row says is right, if anything.
        traces: the operators' calls, where they are known.
    """

    input: Any
    output: Any
    score: float
    answer: Any = None
    error: str = ""
    traces: tuple[Trace, ...] = ()

    @property
    def question(self) -> str:
        """The input in words."""
        if not isinstance(self.input, Mapping):
            return str(self.input)
        shown = next((self.input[key] for key in _INPUTS if key in self.input), None)
        return str({key: self.input[key] for key in self.input if key not in _ANSWERS} if shown is None else shown)


def accuracy_of(cases: Sequence[Case]) -> float:
    """The mean score."""
    return statistics.fmean(case.score for case in cases)


async def run_cases(agent: Callable[..., Any], rows: Sequence[Any], reward: Reward, *, max_running: int) -> list[Case]:
    """The agent on each row, so many at a time, each scored as soon as it is there.

    Raises:
        TrainerError: a score is none; or the agent fails on every row, and the first failure is its cause.
    """
    room = asyncio.Semaphore(max_running)
    failures: list[Exception] = []

    async def work(index: int, row: Any) -> Case:
        async with room:
            with traced() as traces:
                try:
                    output = await called(agent, row)
                except Exception as error:
                    failures.append(error)
                    return Case(row, None, 0.0, _answer(row), f"{type(error).__name__}: {error}", tuple(traces))
            try:
                score = await reward(record_of(row, output, index), threads())
            except Exception as error:
                raise TrainerError(f"no score for row {index}: {type(error).__name__}: {error}", field="reward_fn",
                                   stage="evaluate") from error  # fmt: skip
            return Case(row, output, score, _answer(row), "", tuple(traces))

    cases = await together(work(index, row) for index, row in enumerate(rows))
    if failures and len(failures) == len(rows):
        first = failures[0]
        raise TrainerError(f"the agent fails on every row, first with {type(first).__name__}: {first}", field="agent",
                           stage="evaluate") from first  # fmt: skip
    return cases


def record_of(row: Any, output: Any, index: int) -> RewardRecord:
    """A case as reward functions see it: the same record as of a rollout, without tokens."""
    from farstep.rollout.records import RewardRecord

    completion = output if isinstance(output, str) else str(output)
    question = Case(row, None, 0.0).question
    return RewardRecord(
        prompt=question,
        completion=completion,
        rendered_completion=completion,
        final_answer=completion,
        answer=_answer(row),
        messages=[{"role": "user", "content": question}, {"role": "assistant", "content": completion}],
        trace=[],
        tool_calls=[],
        tool_results=[],
        tokens=[],
        logprobs=[],
        loss_mask=[],
        source_record=row if isinstance(row, Mapping) else {"input": row},
        metadata={"prompt_index": index, "sample_index": 0, "output": output},
    )


def as_cases(given: object) -> list[Case]:
    """What an evaluation function of the user's gave: cases, or mappings or tuples of input, output and score.

    Raises:
        TrainerError: naming the case that is none.
    """
    if not isinstance(given, list | tuple):
        raise TrainerError(f"gave a {type(given).__name__}, not a list of cases", field="eval_fn", stage="evaluate")
    return [_case(each, index) for index, each in enumerate(given)]


def _case(given: Any, index: int) -> Case:
    from farstep.rollout.rewards import finite

    match given:
        case Case():
            case = given
        case {"input": asked, "output": output, "score": score, **more}:
            case = Case(asked, output, score, more.get("answer"), str(more.get("error", "")))
        case (asked, output, score):
            case = Case(asked, output, score)
        case _:
            raise TrainerError(f"{type(given).__name__} is no case", field=f"eval_fn: case {index}", stage="evaluate",
                               hint="Case(input, output, score)")  # fmt: skip
    try:
        score = finite(case.score)
    except ValueError as error:
        raise TrainerError(f"the score {error}", field=f"eval_fn: case {index}", stage="evaluate") from error
    return Case(case.input, case.output, score, case.answer, case.error, case.traces)


def _answer(row: Any) -> Any:
    return next((row[key] for key in _ANSWERS if key in row), None) if isinstance(row, Mapping) else None
