"""What agents may give back, and what is made of it."""

from types import SimpleNamespace
from typing import Any

import pytest

from farstep.rollout.agents import AgentBatch, AgentTrajectory, AgentTrajectoryTurn, normalised
from farstep.rollout.failures import (
    AgentFailure,
    BadToolArguments,
    BudgetExceeded,
    RetryPolicy,
    ToolFailure,
    kind_of,
)
from farstep.trainers.errors import RolloutError

BATCH = AgentBatch([{"a": 1}, {"a": 2}], ["p", "q"], n_samples=2)
ITEMS = list(BATCH.iter_samples())


def test_batches() -> None:
    assert len(BATCH) == 4
    assert [item.place for item in ITEMS] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [item.record for item in ITEMS] == [{"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}]
    part = BATCH.part(ITEMS[1:3])
    assert (len(part), [item.place for item in part.iter_samples()]) == (2, [(0, 1), (1, 0)])
    assert BATCH.part(ITEMS[:1]).item is ITEMS[0]
    with pytest.raises(RolloutError, match="4 samples, not one"):
        BATCH.item  # noqa: B018
    rows = [SimpleNamespace(record={"x": 1}, prompt="a", tokens=[1, 2], solutions="y")]
    loaded = AgentBatch.from_prompt_batch(SimpleNamespace(items=rows), n_samples=3)
    assert (len(loaded), loaded.input_tokens, loaded.records) == (3, [[1, 2]], [{"x": 1}])
    assert [item.answer for item in loaded.iter_samples()] == ["y"] * 3


@pytest.mark.parametrize(
    ("results", "rewards"),
    [
        ([None], [None] * 4),
        ([], [None] * 4),
        ([[1, 2.5, True, 0]], [1.0, 2.5, 1.0, 0.0]),
        ([1, None, AgentTrajectory(reward=3.0), 4], [1.0, None, 3.0, 4.0]),
        ([AgentTrajectory(reward=float(i), item=ITEMS[i]) for i in (2, 0, 3, 1)], [0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_what_is_given_for_each_sample(results: list[Any], rewards: list[float | None]) -> None:
    found = normalised(results, BATCH)
    assert [found[item.place].reward for item in ITEMS] == rewards


def test_turns_of_one_sample_belong_together() -> None:
    turns = [AgentTrajectoryTurn(ITEMS[i], [], {}) for i in (0, 1, 0, 2, 3)]
    assert [len(found.turns) for found in normalised([turns], BATCH).values()] == [2, 1, 1, 1]
    with pytest.raises(RolloutError, match="gave 3 trajectories for 4 samples"):
        normalised(turns[:4], BATCH)
    with pytest.raises(RolloutError, match="does not say whose"):
        normalised([AgentTrajectoryTurn(None, [], {})], BATCH)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([[1, 2, 3]], "gave 3 trajectories for 4 samples"),
        ([None, None], "gave 2 trajectories for 4 samples"),
        (["a", "b", "c", "d"], "gave a str for prompt 0, sample 0"),
        ([AgentTrajectory(item=ITEMS[0])] * 4, "two trajectories for prompt 0, sample 0"),
    ],
)
def test_what_no_agent_may_give(results: list[Any], message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        normalised(results, BATCH)


def test_answers_of_elsewhere_are_no_turns() -> None:
    answer = {"choices": [{"message": {"content": "x"}}]}
    with pytest.raises(RolloutError, match="no token ids or log-probabilities"):
        AgentTrajectoryTurn(None, [], answer).turn()
    with pytest.raises(RolloutError, match="1 choices"):
        AgentTrajectoryTurn(None, [], answer, choice=2).turn()


def test_failures_have_kinds() -> None:
    import openai

    request = openai.APIConnectionError(request=None)  # type: ignore[arg-type]
    kinds = {
        "tool_failure": [ToolFailure("x")],
        "bad_tool_arguments": [BadToolArguments("x"), _json_error()],
        "budget": [BudgetExceeded("x"), TimeoutError()],
        "model_request": [request, ConnectionResetError(), SimpleException(503)],
        "other": [KeyError("x"), AgentFailure("x"), SimpleException(400)],
    }
    for kind, errors in kinds.items():
        assert [kind_of(error) for error in errors] == [kind] * len(errors)
    assert RetryPolicy(tool_failure=4).limit("tool_failure") == 4
    with pytest.raises(ValueError, match="budget"):
        RetryPolicy(budget=-1)


class SimpleException(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__()
        self.status_code = status_code


def _json_error() -> Exception:
    import json

    try:
        json.loads("{")
    except ValueError as error:
        return error
    raise AssertionError
