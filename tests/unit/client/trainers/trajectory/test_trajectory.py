"""Trajectories: from conversations and rollouts to items, to JSON and CSV and back."""

import csv
import dataclasses
import json

import pytest

from farstep.rollout.agents import AgentItem
from farstep.rollout.records import RewardEvent, RewardRecord
from farstep.rollout.results import Rollout, RolloutSample
from farstep.rollout.turns import Turn
from farstep.trainers import DataError, TrainSequence
from farstep.trainers.trajectory import (
    DefaultStrategy,
    TrajectoryDataset,
    TrajectoryExtractor,
    TrajectoryItem,
    items_of_rollout,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And"},
    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
    {"role": "assistant", "content": "=4"},
]


def dataset():
    return TrajectoryDataset(clock=lambda: 12.5)


def test_a_conversation_becomes_an_item_and_json_and_the_same_item(tmp_path):
    data = dataset()
    item = data.from_messages(TALK[:5], task_id="t", agent_id="a", score=0.5, metadata={"x": [1, {"y": None}]})
    assert (item.id, item.step, item.timestamp, item.input, item.output) == ("t/a/0", 0, 12.5, "1+1?", "It is 2.")
    assert item.tool_calls == [{"id": "c1", "name": "add", "arguments": '{"a": 1}'}]
    assert item.messages == TALK[:5]
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.step = 3
    assert TrajectoryItem.from_dict(item.to_dict()) == item
    file = tmp_path / "items.json"
    assert list(TrajectoryDataset.from_json(data.to_json(file))) == [item]
    assert list(TrajectoryDataset.from_json(file)) == [item]


def test_steps_are_counted_for_each_agent_on_each_task():
    data = dataset()
    places = [("t", "a"), ("t", "b"), ("t", "a"), ("u", "a"), ("t", "a"), ("t", "")]
    items = [data.from_messages(TALK, task_id=task, agent_id=agent) for task, agent in places]
    assert [item.step for item in items] == [0, 0, 1, 0, 2, 0]
    again = TrajectoryDataset.from_json(data.to_json())
    assert again.next_step("t", "a") == 3
    assert again.from_messages(TALK, task_id="t", agent_id="a").step == 3
    assert [item.id for item in data.of_task("t", "a")] == ["t/a/0", "t/a/1", "t/a/2"]
    assert data.task_ids == ["t", "u"]
    data.clear()
    assert len(data) == 0
    assert data.from_messages(TALK, task_id="t", agent_id="a").step == 0


def test_a_task_is_replaced_whole_or_not_at_all():
    data = dataset()
    for task in ("t", "u", "t"):
        data.from_messages(TALK, task_id=task)
    new = TrajectoryItem(id="new", task_id="t", input="x", step=4)
    with pytest.raises(DataError, match="of another task"):
        data.put_task("t", [new, TrajectoryItem(id="v", task_id="v")])
    assert len(data) == 3
    data.put_task("t", [new])
    assert [item.id for item in data] == ["u/0", "new"]
    assert data.next_step("t") == 5


def test_items_that_are_not_whole_are_reported_and_kept():
    data = dataset()
    data.from_messages(TALK, task_id="good")
    data.from_messages([{"role": "assistant", "content": "hi"}], task_id="no-user")
    data.from_messages([{"role": "user", "content": "hi"}], task_id="no-answer")
    data.from_messages([{"role": "user", "content": "hi"}], task_id="running", status="running")
    data.append(TrajectoryItem(id="x", task_id="", input="a", output="b", score=float("inf"), messages=[{}]))
    assert [(each.index, each.id, each.problems) for each in data.validate()] == [
        (1, "no-user/0", ("input is empty",)),
        (2, "no-answer/0", ("output is empty, and no tool was called",)),
        (4, "x", ("task_id is empty", "score is inf", "messages[0] has no role")),
    ]
    with pytest.raises(DataError, match="not what JSON can hold"):
        data.to_json()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": "1"}, "step: a str cannot be here"),
        ({"step": True}, "step: a bool"),
        ({"messages": "x"}, "messages: a str"),
        ({"status": "done"}, "status: 'done' is none of"),
        ({"score": "high"}, "score"),
        ({"reward": 1}, "reward: unknown"),
    ],
)
def test_what_is_no_item_is_refused_with_its_place(changes, reason):
    good = TrajectoryItem(id="a", task_id="t").to_dict()
    with pytest.raises(DataError, match=rf"items\[1\]\.{reason}"):
        TrajectoryDataset.from_json(json.dumps([good, good | {"id": "b"} | changes]))
    with pytest.raises(DataError, match="task_id: missing"):
        TrajectoryItem.from_dict({"id": "a"})
    with pytest.raises(DataError, match=r"items\[1\].id: 'a' is there already"):
        TrajectoryDataset.from_json(json.dumps([good, good]))
    with pytest.raises(DataError, match="source: no JSON"):
        TrajectoryDataset.from_json("[")


def test_csv_opens_and_has_every_line_and_no_formula(tmp_path):
    data = dataset()
    data.from_messages(TALK, task_id="t", score=1.0)
    data.append(TrajectoryItem(id="x", task_id="t", input='a "b",\nc', output="=1+1"))
    with data.to_csv(tmp_path / "items.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["output"], first["score"], second["score"]) == ("'=4", "1.0", "")
    assert second["input"] == 'a "b",\nc'
    assert second["output"] == "'=1+1"
    assert json.loads(first["tool_calls"])[0]["name"] == "add"


def test_a_conversation_is_cut_where_the_user_speaks():
    data = dataset()
    data.from_messages(TALK, task_id="t")
    first, second = TrajectoryExtractor().extract(TALK, task_id="t", dataset=data)
    assert (first.step, first.input, first.output) == (1, "1+1?", "It is 2.")
    assert first.context == TALK[:1]
    assert (second.step, second.input, second.output, second.tool_calls) == (2, "And", "=4", [])
    assert second.context == TALK[:5]
    assert second.messages == TALK[5:]
    assert len(data) == 3
    assert TrajectoryExtractor().extract(TALK[:1], task_id="t") == []
    with pytest.raises(DataError, match=r"messages\[1\]: has no role"):
        TrajectoryExtractor().extract([TALK[1], {"content": "x"}], task_id="t")


def test_a_strategy_of_ones_own():
    class LastUser(DefaultStrategy):
        def build_item(self, messages, about):
            return dataclasses.replace(super().build_item(messages, about), input="mine")

    assert TrajectoryDataset(strategy=LastUser()).from_messages(TALK, task_id="t").input == "mine"


def sample(prompt_index, sample_index, *, outcome="ok", record=None, reward=1.0):
    item = AgentItem({"id": f"row-{prompt_index}", "prompt": "1+1?"}, "1+1?", None, prompt_index, sample_index)
    if record is None:
        return RolloutSample(item, outcome=outcome, reason="tool_failure")
    turn = Turn((1, 2), (3,), (-0.5,), (7,), TALK[1:2], TALK[2])
    metadata = {"policy_versions": [None, None, 7]}
    row = TrainSequence([1, 2, 3], [0.0, 0.0, 1.0], logprobs=[0.0, 0.0, -0.5], metadata=metadata)
    return RolloutSample(item, turns=[turn], rows=[row], record=record, reward=reward)


def test_rollouts_become_items_failed_ones_too():
    record = RewardRecord(
        prompt="1+1?", completion="It is 2.", rendered_completion="It is 2.<end>", final_answer="It is 2.", answer="2",
        messages=TALK[:5], trace=[RewardEvent("assistant", 0, "It is 2.")], tool_calls=[], tool_results=[],
        tokens=[1, 2, 3], logprobs=[0.0, 0.0, -0.5], loss_mask=[0.0, 0.0, 1.0], source_record={},
        metadata={"num_turns": 1, "policy_version": 7})  # fmt: skip
    rollout = Rollout([sample(0, 0, record=record), sample(0, 1, outcome="failed"), sample(1, 0, record=record)])
    first, failed, other = items_of_rollout(rollout, agent_id="a", with_tokens=True, timestamp=3.0)
    assert (first.id, failed.id, other.id) == ("row-0/a/0", "row-0/a/1", "row-1/a/0")
    assert (first.input, first.output, first.score, first.status) == ("1+1?", "It is 2.", 1.0, "completed")
    assert first.tool_calls == [{"id": "c1", "name": "add", "arguments": '{"a": 1}'}]
    assert first.metadata["policy_version"] == 7
    assert first.metadata["num_turns"] == 1
    assert first.metadata["rows"] == [
        {
            "tokens": [1, 2, 3],
            "logprobs": [0.0, 0.0, -0.5],
            "loss_mask": [0.0, 0.0, 1.0],
            "policy_versions": [None, None, 7],
            "kinds": [],
        }
    ]
    assert (failed.status, failed.input, failed.score, failed.metadata["reason"]) == (
        "failed", "1+1?", None, "tool_failure")  # fmt: skip
    data = TrajectoryDataset([first, failed, other])
    assert data.validate() == []
    assert list(TrajectoryDataset.from_json(data.to_json())) == [first, failed, other]
