"""Reward functions of every kind, and what they may give."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from farstep.rollout.agents import AgentItem
from farstep.rollout.kinds import LossMaskPolicy
from farstep.rollout.merging import merge
from farstep.rollout.records import RewardRecord, make_record
from farstep.rollout.rewards import Reward, finite
from farstep.rollout.spans import Spans
from farstep.trainers.errors import RolloutError
from tests.unit.client.rollout.dialogues import turn, user


@pytest.fixture
def record(tokenizer: Any, spans: Spans) -> RewardRecord:
    item = AgentItem({"answer": "42"}, "12+30?", None, 3, 1)
    turns = [turn(tokenizer, [user("12+30?")], "42", call_errors=("<tool_call>{",), finish_reason="length")]
    return make_record(item, turns, merge(turns, spans).rows, spans, LossMaskPolicy())


def test_a_record_of_one_turn(record: RewardRecord, tokenizer: Any) -> None:
    assert (record.prompt, record.completion, record.final_answer, record.answer) == ("12+30?", "42", "42", "42")
    assert record.rendered_completion == "42<|im_end|>"
    assert [event.kind for event in record.trace] == ["message", "assistant", "parse_error", "cut"]
    assert tokenizer.decode([t for t, weight in zip(record.tokens, record.loss_mask, strict=True) if weight]) == (
        "42<|im_end|>"
    )
    assert record.metadata == {
        "prompt_index": 3, "sample_index": 1, "num_turns": 1, "num_rows": 1, "finish_reason": "length",
        "policy_version": 7,
    }  # fmt: skip


async def test_functions_get_what_they_are_named_after(record: RewardRecord) -> None:
    async def asynchronous(completion: str, answer: str) -> float:
        return float(completion == answer)

    def partly(completion: str, other: int = 5) -> int:
        return len(completion) + other

    class Judge:
        def __call__(self, record: RewardRecord) -> np.float32:
            return np.float32(0.25)

    functions: dict[Any, float] = {
        asynchronous: 1.0,
        partly: 7.0,
        Judge(): 0.25,
        (lambda anything: anything.metadata["prompt_index"]): 3.0,
        (lambda prompt, completion, answer, record: len(prompt) + len(record.tokens) * 0): 6.0,
        (lambda trace, tool_calls: len(trace) + len(tool_calls)): 4.0,
        (lambda *, final_answer: final_answer == "42"): 1.0,
        (lambda *given: len(given)): 1.0,
        (lambda record: asynchronous(record.completion, "no")): 0.0,
    }
    with ThreadPoolExecutor(1) as threads:
        for function, value in functions.items():
            assert await Reward(function)(record, threads) == value


def test_functions_that_no_record_fits() -> None:
    with pytest.raises(RolloutError, match=r"no record has ground_truth.*completion"):
        Reward(lambda completion, ground_truth: 0)
    with pytest.raises(RolloutError, match="it takes nothing"):
        Reward(lambda: 0)
    with pytest.raises(RolloutError, match="a str cannot be called"):
        Reward("reward")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, [1, 2]])
def test_what_is_no_reward(value: object) -> None:
    with pytest.raises(ValueError, match="not"):
        finite(value)


async def test_rewards_of_several_parts(record: RewardRecord) -> None:
    """What a reward is the sum of is told by itself."""
    with ThreadPoolExecutor(1) as threads:
        parts = Reward(lambda record: {"format": 0.25, "right": np.float32(0.5)})
        score = await parts.score(record, threads)
        assert (score.value, score.parts) == (0.75, {"format": 0.25, "right": 0.5})
        assert (await Reward(lambda record: 2).score(record, threads)).parts == {}
        for wrong, message in (({}, "empty"), ({"format": float("nan")}, "format: nan is not finite")):
            with pytest.raises(ValueError, match=message):
                await Reward(lambda record, wrong=wrong: wrong).score(record, threads)
