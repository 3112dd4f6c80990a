"""Events of rollouts: small, however long a run is, and whole where that is asked for."""

import json
from types import SimpleNamespace
from typing import Any

from farstep.rollout import Rollout, RolloutSample
from farstep.rollout.agents import AgentItem
from farstep.rollout.turns import Turn
from farstep.trainers.rl.reporting import described
from farstep.trainers.sequence import TrainSequence

TOKENIZER = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")


def rollout_of(num_rows: int, num_tokens: int) -> Rollout:
    prompt, answer = [1, 2], [3] * (num_tokens - 2)
    row = TrainSequence.from_prompt_completion(prompt, answer, logprobs=[-0.5] * num_tokens)
    turn = Turn(prompt, answer, [-0.5] * len(answer), [1] * len(answer))
    return Rollout(
        [
            RolloutSample(AgentItem({}, "p", None, 0, index), (turn,), (row,), reward=float(index))
            for index in range(num_rows)
        ]
    )


def event(rollout: Rollout, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(described(rollout, rollout.rows, TOKENIZER, **settings)))
    return found


def test_events_have_pieces_of_rows_now_and_then() -> None:
    rollout = rollout_of(6, 400)
    found = [event(rollout, step=step, num_rows=0) for step in range(17)]
    assert [step for step, each in enumerate(found) if "rows" in each] == [0, 1, 3, 7, 15]
    assert {len(row["tokens"]) for each in found for row in each.get("rows", ())} == {256}
    assert {len(each["rows"]) for each in found if "rows" in each} == {2}
    assert all(each["funnel"]["trained"] == 6 for each in found)
    assert len(json.dumps(found[4])) < 2000


def test_events_have_whole_rows_where_they_are_asked_for() -> None:
    rows = event(rollout_of(6, 400), step=4, num_rows=5)["rows"]
    assert [len(row["tokens"]) for row in rows] == [400] * 5
    assert [len(row["logprobs"]) for row in rows] == [400] * 5
    assert len(event(rollout_of(6, 400), step=0, num_rows=100)["rows"]) == 6
