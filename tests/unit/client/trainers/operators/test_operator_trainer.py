"""The operator trainer, with a scripted model at the edge: what improves, what is kept, and where a run goes on."""

import asyncio
import json

import pytest

from farstep.trainers import ConfigError, Trainer, TrainerError, TrainerState
from farstep.trainers.operators import Case, LLMCallOperator, OperatorAgent, OperatorTrainer, ToolCallOperator
from tests.support.trainees import Recorder
from tests.unit.client.trainers.operators.scripted import ROWS, Improver, exact, model


def bad_agent():
    return LLMCallOperator("answer", model, system_prompt="You are {style}.", user_prompt="{input}")


def make(tmp_path, operator, improver, *, events=None, cls=OperatorTrainer, train_data=ROWS, **changes):
    options = {name: changes.pop(name) for name in ("test_data", "eval_fn", "optimizer") if name in changes}
    config = {"name": "tune", "output_dir": str(tmp_path), "epochs": 3, **changes}
    return cls(config, client=improver, agent=operator, train_data=train_data, reward_fn=exact,
               event_sinks=[events] if events is not None else [], **options)  # fmt: skip


def test_a_bad_prompt_gets_better_and_keeps_its_placeholders(tmp_path):
    operator, improver, events = bad_agent(), Improver("UPPER", "STRIP"), Recorder()
    trainer = make(tmp_path, operator, improver, events=events)
    result = trainer.fit()
    assert events.values("eval/accuracy", "eval") == [0.0, 0.5, 1.0, 1.0]
    assert operator["system_prompt"] == "You are {style}. UPPER STRIP"
    assert (result.accuracy, result.loss, result.steps) == (1.0, 0.0, 3)
    assert result.extra["best_epoch"] == 2
    assert trainer.state is TrainerState.COMPLETED
    assert [event["type"] for event in events if event["type"] not in ("log", "eval", "checkpoint")] == [
        "started", "completed"]  # fmt: skip
    assert [event["epoch"] for event in events.of("checkpoint")] == [1, 2, 3]
    assert len(improver.critic_asked) == 12  # six weak cases in two epochs, none in the third
    assert sum("Right answer:\nAB" in asked for asked in improver.critic_asked) == 2
    assert len(set(improver.seeds)) == len(improver.seeds)


def test_it_is_found_by_its_name_and_needs_no_model(tmp_path):
    assert Trainer.get("operator") is OperatorTrainer
    trainer = make(tmp_path, bad_agent(), Improver())
    assert trainer.config.model.base == "none"
    with pytest.raises(AttributeError, match="trains no weights"):
        _ = trainer.client


def test_what_gets_worse_is_not_kept(tmp_path):
    operator = LLMCallOperator("answer", model, system_prompt="You are {style}. UPPER")

    class Spoils:
        async def backward(self, cases):
            assert all(case.score == 0.5 for case in cases)  # it always begins from the best

        async def step(self):
            operator.set("system_prompt", "Whisper, {style}.")

    events = Recorder()
    result = make(tmp_path, operator, None, events=events, optimizer=Spoils()).fit()
    assert events.values("eval/accuracy", "eval") == [0.5, 0.0, 0.0, 0.0]
    assert operator["system_prompt"] == "You are {style}. UPPER"
    assert (result.accuracy, result.extra["best_epoch"]) == (0.5, 0)
    kept = make(tmp_path / "kept", operator, None, operators={"on_worse": "keep"}, optimizer=[Recording()])
    assert kept.fit().accuracy == 0.5


class Recording:
    """An optimizer that changes nothing."""

    def __init__(self):
        self.cases = []

    async def backward(self, cases):
        self.cases.append(list(cases))

    async def step(self):
        return []


def test_a_resumed_run_equals_the_undisturbed_one(tmp_path):
    words = ("ONE", "UPPER", "TWO", "STRIP")

    def run(folder, **changes):
        operator, improver, events = bad_agent(), Improver(*words), Recorder()
        trainer = make(folder, operator, improver, events=events, epochs=4, batch_size=4,
                       operators={"on_worse": "keep"}, checkpoint={"auto_resume": True}, **changes)  # fmt: skip
        return trainer, operator, improver, events, trainer.fit()

    whole, operator, improver, events, result = run(tmp_path / "whole")
    first, _, asked_before, _, _ = run(tmp_path / "cut", exit_iteration=4)  # two epochs of two steps
    assert first.position.epoch == 2
    second, again, asked_after, events_after, result_after = run(tmp_path / "cut")
    assert second.is_resume
    assert second.run_id == first.run_id
    assert events_after[0]["resumed"]
    assert [event["epoch"] for event in events_after.of("checkpoint")] == [3, 4]
    assert again.get_state() == operator.get_state()
    assert sorted(asked_before.seeds + asked_after.seeds) == sorted(improver.seeds)
    assert result_after.accuracy == result.accuracy
    assert events_after.values("loss") == events.values("loss")[4:]
    saved = [json.loads((each.files.path_of(4)).read_text()) for each in (whole, second)]
    for state in saved:
        del state["run_id"], state["trackers"]  # its folder is in these
    assert saved[0] == saved[1]


def test_a_damaged_checkpoint_is_an_error_and_a_missing_one_a_fresh_start(tmp_path):
    make(tmp_path, bad_agent(), Improver("UPPER"), epochs=1).fit()
    file = tmp_path / "tune" / "checkpoints" / "checkpoint_1.json"
    whole = json.loads(file.read_text())
    missing = make(tmp_path / "a", bad_agent(), Improver(), epochs=1,
                   operators={"resume_from": str(tmp_path / "nowhere" / "checkpoint_7.json")})  # fmt: skip
    missing.fit()
    assert not missing.is_resume
    for damaged in (file.read_text()[:-20], "[]", json.dumps(whole | {"best": {}}), json.dumps(whole | {"rng": 3})):
        file.write_text(damaged)
        operator = bad_agent()
        trainer = make(tmp_path / "b", operator, Improver("UPPER"), operators={"resume_from": str(file)})
        with pytest.raises(TrainerError, match="damaged"):
            trainer.fit()
        assert trainer.state is TrainerState.FAILED
        assert operator["system_prompt"] == "You are {style}."
    file.write_text(json.dumps(whole | {"operators": {"other": {}}}))
    with pytest.raises(TrainerError, match="the states are of other, and the operators are answer"):
        make(tmp_path / "c", bad_agent(), Improver(), operators={"resume_from": str(file)}).fit()
    file.write_text(json.dumps(whole))
    with pytest.raises(TrainerError, match="the data, their order or batch_size"):
        make(tmp_path / "d", bad_agent(), Improver(), train_data=ROWS[:3], operators={"resume_from": str(file)}).fit()


def test_a_new_run_does_not_take_an_earlier_ones_checkpoints_for_its_own(tmp_path):
    make(tmp_path, bad_agent(), Improver("UPPER"), epochs=3).fit()
    trainer = make(tmp_path, bad_agent(), Improver("UPPER"), epochs=1)
    trainer.fit()
    assert trainer.files.epochs() == [1]
    assert len(list((trainer.files.folder / "earlier-1").iterdir())) == 3


def test_test_data_judge_and_the_threshold_ends_it(tmp_path):
    events = Recorder()
    trainer = make(tmp_path, bad_agent(), Improver("UPPER", "STRIP"), events=events, epochs=9, test_data=ROWS[:2],
                   early_stopping={"metric": "eval/accuracy", "mode": "max", "threshold": 0.5})  # fmt: skip
    result = trainer.fit()
    assert result.steps == 1
    assert "as good as wanted" in result.stopped_because
    assert events.values("num_batches", "eval") == [1, 1]


def test_no_more_of_an_agent_runs_at_a_time_than_wanted_and_a_failing_row_is_a_case(tmp_path):
    running, most = 0, 0

    async def agent(row):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1
        if row["input"] == "ab.":
            raise ValueError("no ab")
        return await operator.execute(**row)

    operator, recording = bad_agent(), Recording()
    trainer = make(tmp_path, OperatorAgent([operator], agent), None, optimizer=recording, epochs=1,
                   operators={"max_running": 2}, data={"shuffle": False})  # fmt: skip
    result = trainer.fit()
    assert most == 2
    cases = recording.cases[0]
    assert [case.input for case in cases] == ROWS
    assert (cases[0].score, cases[0].error, cases[0].output) == (0.0, "ValueError: no ab", None)
    assert [trace.operator for trace in cases[1].traces] == ["answer"]
    assert result.extra["num_failed"] == 1


def test_an_agent_that_fails_everywhere_ends_the_run(tmp_path):
    def fails(row):
        raise ConnectionError("down")

    trainer = make(tmp_path, OperatorAgent([bad_agent()], fails), Improver())
    with pytest.raises(TrainerError, match="fails on every row, first with ConnectionError: down"):
        trainer.fit()
    assert trainer.state is TrainerState.FAILED


def test_a_score_that_is_none_names_its_row(tmp_path):
    trainer = OperatorTrainer({"output_dir": str(tmp_path)}, client=Improver(), agent=bad_agent(), train_data=ROWS,
                              reward_fn=lambda completion: float("nan"))  # fmt: skip
    with pytest.raises(TrainerError, match="no score for row 0: ValueError: nan is not finite"):
        trainer.fit()


def test_an_evaluation_function_gives_the_cases(tmp_path):
    operator = bad_agent()

    async def evaluate(agent, rows):
        outputs = [await agent(row) for row in rows]
        return [(row["input"], output, float(output.isupper())) for row, output in zip(rows, outputs, strict=True)]

    trainer = OperatorTrainer({"output_dir": str(tmp_path), "epochs": 1}, client=Improver("UPPER"), agent=operator,
                              train_data=ROWS, eval_fn=evaluate)  # fmt: skip
    assert trainer.fit().accuracy == 1.0
    wrong = OperatorTrainer({"output_dir": str(tmp_path)}, client=Improver(), agent=operator, train_data=ROWS,
                            eval_fn=lambda agent, rows: [Case("a", "b", 1.0), ("a", "b")])  # fmt: skip
    with pytest.raises(TrainerError, match="eval_fn: case 1: tuple is no case"):
        wrong.fit()


def test_what_it_needs_is_checked_before_anything_is_asked(tmp_path):
    good = {"agent": bad_agent(), "train_data": ROWS, "reward_fn": exact, "client": Improver()}
    config = {"output_dir": str(tmp_path)}
    for changes, reason in [
        ({"agent": lambda row: ""}, "agent.operators: no list of operators"),
        ({"agent": None}, "agent"),
        ({"train_data": []}, "train_data: is empty"),
        ({"train_data": [{"input": "a"}, "b"]}, r"train_data\[1\]: must be a mapping"),
        ({"reward_fn": None}, "needs a reward function"),
        ({"reward_fn": lambda completion, gold: 1}, "no record has gold"),
    ]:
        trainer = OperatorTrainer(config, **(good | changes))
        with pytest.raises((TrainerError, RuntimeError), match=reason):
            trainer.validate()
        assert trainer.state is TrainerState.CREATED
    with pytest.raises(TrainerError, match="Improver has no async backward"):
        OperatorTrainer(config, optimizer=Improver(), **good)
    for changes, field in [
        ({"mini_bs": 2}, "mini_bs"),
        ({"checkpoint": {"type": "export"}}, "checkpoint"),
        ({"operators": {"beam": 3}}, "operators.beam"),
        ({"rl": {"group_size": 2}}, "rl"),
    ]:
        with pytest.raises(ConfigError, match=field):
            OperatorTrainer(config | changes, **good)
    with pytest.raises(TrainerError, match="model: missing"):
        OperatorTrainer(config, **(good | {"client": None})).fit()


def test_evaluation_works_before_and_after_training_and_without_rows(tmp_path):
    operator = bad_agent()
    trainer = make(tmp_path, operator, Improver("UPPER", "STRIP"))
    with trainer:
        trainer.validate()
        assert trainer.evaluate(ROWS[:2]).accuracy == 0.0
        trainer.train()
        found = trainer.evaluate(ROWS[:2])
        assert (found.accuracy, found.loss, found.steps) == (1.0, 0.0, 1)
        empty = trainer.evaluate([])
        assert (empty.accuracy, empty.steps) == (None, 0)


def test_cancelled_it_ends_between_steps_with_the_best_there_was(tmp_path):
    operator, events = bad_agent(), Recorder()

    class Stop:
        def on_log(self, event):
            trainer.cancel("enough")

    trainer = OperatorTrainer({"output_dir": str(tmp_path), "epochs": 5, "name": "tune"}, client=Improver("UPPER"),
                              agent=operator, train_data=ROWS, reward_fn=exact, callbacks=[Stop()],
                              event_sinks=[events])  # fmt: skip
    result = trainer.fit()
    assert trainer.state is TrainerState.CANCELLED
    assert (result.steps, result.stopped_because) == (1, "enough")
    assert [event["type"] for event in events][-1] == "cancelled"
    assert operator["system_prompt"] == "You are {style}. UPPER"


def test_hooks_and_overrides_are_the_trainers_own(tmp_path):
    seen = []

    class Half(OperatorTrainer):
        def pre_step(self, batch):
            return batch[:2]

        def post_evaluate(self, result):
            seen.append(result.accuracy)
            return result

    trainer = make(tmp_path, bad_agent(), Improver("UPPER", "STRIP"), cls=Half)
    result = trainer.fit()
    assert trainer.metrics["num_rows"] == 2
    assert seen == [0.0, 0.5, 1.0, 1.0]
    assert result.accuracy == 1.0


def test_checkpoints_are_kept_as_wanted(tmp_path):
    trainer = make(tmp_path, bad_agent(), Improver("UPPER", "STRIP"), epochs=6,
                   checkpoint={"keep_last": 2, "keep_best": 1})  # fmt: skip
    trainer.fit()
    assert trainer.files.epochs() == [2, 5, 6]
    every = make(tmp_path / "every", bad_agent(), Improver("UPPER"), epochs=5, checkpoint={"save_every_n_epochs": 2})
    every.fit()
    assert every.files.epochs() == [2, 4, 5]


def test_an_async_fit_leaves_the_loop_free(tmp_path):
    async def main():
        trainer = make(tmp_path, bad_agent(), Improver("UPPER", "STRIP"))
        return await trainer.fit_async()

    assert asyncio.run(main()).accuracy == 1.0


def test_a_tool_description_is_found_by_a_beam(tmp_path):
    """The scripted agent calls the tool only where its description says numbers, and adds right where it says all."""
    tool = ToolCallOperator("add", lambda numbers: sum(numbers), description="A thing.")
    tried = []

    async def agent(row):
        about = tool["description"]
        tried.append(about)
        if "numbers" not in about:
            return "?"
        return str(await tool.execute(numbers=row["numbers"] if "all" in about else row["numbers"][:1]))

    said = []

    def writer(messages, seed=None):
        said.append(messages[1]["content"])
        present = messages[1]["content"]
        if "A thing." in present:
            return ["<description>Adds numbers.</description>", "no tags", "<description>Nice.</description>"][
                len(said) % 3
            ]
        return "<description>Adds all numbers.</description>"

    rows = [{"input": f"{a}+{b}", "numbers": [a, b], "answer": str(a + b)} for a, b in ((1, 2), (3, 4), (5, 0))]
    events = Recorder()
    trainer = OperatorTrainer(
        {"output_dir": str(tmp_path), "epochs": 1, "operators": {"optimizer": "tool"}, "data": {"shuffle": False}},
        client=writer, agent=OperatorAgent([tool], agent), train_data=rows, event_sinks=[events],
        reward_fn=lambda completion, answer: completion == answer)  # fmt: skip
    result = trainer.fit()
    assert tool["description"] == "Adds all numbers."
    assert events.values("eval/accuracy", "eval") == [0.0, 1.0]
    assert result.accuracy == 1.0
    assert "<description>\nAdds numbers.\n</description>" in "".join(said)  # the second round refines the first's
    assert trainer.changes[0].before == "A thing."
    assert set(tried) == {"A thing.", "Nice.", "Adds numbers.", "Adds all numbers."}


def test_a_beam_that_finds_nothing_better_leaves_the_description(tmp_path):
    tool = ToolCallOperator("add", sum, description="A thing.")
    trainer = OperatorTrainer(
        {"output_dir": str(tmp_path), "epochs": 1, "operators": {"optimizer": ["tool"]}},
        client=lambda messages: "<description>Worse.</description>", agent=OperatorAgent([tool], lambda row: "x"),
        train_data=ROWS, reward_fn=lambda completion: 0.25)  # fmt: skip
    trainer.fit()
    assert tool["description"] == "A thing."
    assert trainer.changes[0].reason == "none of 1 others is better"


def test_a_prompt_without_its_placeholders_is_sent_back(tmp_path):
    operator, improver = bad_agent(), Improver("UPPER", "STRIP", breaks_first=2)
    trainer = make(tmp_path, operator, improver, epochs=1)
    trainer.fit()
    assert operator["system_prompt"] == "You are {style}. UPPER"
    assert "the placeholder {style} is lost" in improver.writer_asked[-1][-1]["content"]
    stubborn = Improver(breaks_first=99)
    events = Recorder()
    make(tmp_path, operator, stubborn, epochs=1, events=events).fit()
    assert operator["system_prompt"] == "You are {style}. UPPER"
    assert events.values("num_refused") == [1.0]
    assert len(stubborn.writer_asked) == 3


def test_at_most_ten_weak_cases_are_criticized_the_worst_first(tmp_path):
    rows = [{"input": f"{index:02}", "style": "kind"} for index in range(20)]
    improver = Improver()
    trainer = OperatorTrainer({"output_dir": str(tmp_path), "epochs": 1, "batch_size": 20}, client=improver,
                              agent=bad_agent(), train_data=rows,
                              reward_fn=lambda completion: int(completion) / 20)  # fmt: skip
    trainer.fit()
    asked = sorted(text.split("Question:\n")[1][:2] for text in improver.critic_asked)
    assert asked == [f"{index:02}" for index in range(10)]


def test_gone_on_from_an_earlier_epoch_what_came_after_it_is_put_away(tmp_path):
    trainer = make(tmp_path, bad_agent(), Improver("ONE", "TWO", "UPPER"), epochs=5)
    trainer.fit()
    second = {"resume_from": str(trainer.files.path_of(2))}
    again = make(tmp_path, bad_agent(), Improver("UPPER"), epochs=3, operators=second)
    again.fit()
    assert again.files.epochs() == [1, 2, 3]
    assert again.run_id == trainer.run_id
    assert len(list((trainer.files.folder / "earlier-1").iterdir())) == 3
    elsewhere = make(tmp_path / "else", bad_agent(), Improver("UPPER"), epochs=3, operators=second)
    elsewhere.fit()
    assert elsewhere.is_resume
    assert elsewhere.files.epochs() == [3]


AGENT = OperatorAgent(bad_agent())


def test_a_configuration_may_name_agent_and_reward(tmp_path):
    path = tmp_path / "tune.yaml"
    here = "tests.unit.client.trainers.operators"
    path.write_text(f"""
type: operator
name: tune
output_dir: {tmp_path}
dataset:
  - {{input: "ab.", style: kind, answer: AB}}
operators:
  agent: {here}.test_operator_trainer:AGENT
  reward: {here}.scripted:exact
epochs: 2
""")
    trainer = Trainer.get("operator")(path, client=Improver("UPPER", "STRIP"))
    assert trainer.fit().accuracy == 1.0
    assert trainer.operators[0]["system_prompt"] == "You are {style}. UPPER STRIP"


def test_without_validation_the_training_rows_judge_and_a_change_of_the_last_step_counts_for_nothing(tmp_path):
    operator, events = bad_agent(), Recorder()
    trainer = make(tmp_path, operator, Improver("UPPER", "STRIP"), events=events, eval_interval=0, epochs=2)
    result = trainer.fit()
    assert events.of("eval") == []
    assert events.values("accuracy") == [0.0, 0.5]
    assert (result.accuracy, result.extra["best_epoch"]) == (0.5, 1)
    assert operator["system_prompt"] == "You are {style}. UPPER"


def test_a_run_that_is_over_is_not_done_again(tmp_path):
    make(tmp_path, bad_agent(), Improver("UPPER", "STRIP"), checkpoint={"auto_resume": True}).fit()
    operator, nobody, events = bad_agent(), Improver(), Recorder()
    result = make(tmp_path, operator, nobody, events=events, checkpoint={"auto_resume": True}).fit()
    assert [event["type"] for event in events] == ["started", "completed"]
    assert (result.accuracy, operator["system_prompt"], nobody.seeds) == (1.0, "You are {style}. UPPER STRIP", [])
