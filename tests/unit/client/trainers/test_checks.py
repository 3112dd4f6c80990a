"""States and checks: the legal way, and exact words on every other."""

import sys
import types

import pytest

from farstep.trainers import ConfigError, GRPOTrainer, SFTTrainer, Trainer, TrainerError, TrainSequence
from farstep.trainers.lifecycle import Lifecycle, TrainerState

CONFIG = {"name": "run", "model": "farstep/tiny"}
ROWS = [TrainSequence([1, 2], [0, 1])]


class Rewarded(Trainer):
    needs = ("dataset", "config", "reward")


def test_the_legal_way_and_every_other():
    life = Lifecycle(["dataset"])
    with pytest.raises(TrainerError, match="train needs a trainer that is validated, and this one is created"):
        life.begin()
    with pytest.raises(TrainerError, match="these checks have not passed yet: dataset"):
        life.mark_validated()
    assert life.state == "created"
    life.passed("dataset")
    life.mark_validated()
    with pytest.raises(TrainerError, match="mark_validated needs a trainer that is created, and this one is validated"):
        life.mark_validated()
    life.begin()
    with pytest.raises(TrainerError, match="check_reward belongs before training, and this trainer is training"):
        life.may_check("reward")
    life.end(TrainerState.COMPLETED)
    for refused in (life.begin, life.mark_validated, lambda: life.end(TrainerState.FAILED)):
        with pytest.raises(TrainerError, match=r"and this one is completed .*make a new one"):
            refused()
    assert life.state == "completed"


def test_checks_come_in_any_order_and_again():
    trainer = Rewarded()
    trainer.check_reward(len)
    trainer.check_dataset(ROWS)
    trainer.check_dataset(ROWS, ROWS)
    with pytest.raises(TrainerError, match="these checks have not passed yet: config"):
        trainer.mark_validated()
    trainer.check_config(CONFIG)
    trainer.mark_validated()
    assert trainer.state == "validated"
    with pytest.raises(TrainerError):
        trainer.check_reward("no colon")
    assert trainer.state == "created"  # what passed before does not any more


def test_validate_takes_what_the_constructor_was_given():
    SFTTrainer(CONFIG, train_data=ROWS).validate()
    with pytest.raises(TrainerError, match="there is nothing to train on"):
        SFTTrainer(CONFIG).validate()
    with pytest.raises(ConfigError, match="has no configuration"):
        SFTTrainer(train_data=ROWS).validate()
    with pytest.raises(TrainerError, match="needs a reward function"):
        Rewarded(CONFIG, train_data=ROWS).validate()
    SFTTrainer({**CONFIG, "dataset": "rows.jsonl"}).validate()  # read when it is needed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_data: is empty"),
        ("text", "train_data: must be a list of rows, not str"),
        ({"prompt": "x"}, "must be a list of rows, not dict"),
        ((row for row in ROWS), "must be a list of rows, not generator"),
        ([{"prompt": "x", "response": "y"}, 3], r"train_data\[1\]: must be a mapping"),
        ([{"prompt": "x", "response": "y"}, {"prompt": "x", "odd": 1}], "row 1.*'prompt', 'odd'"),
    ],
)
def test_rows_that_are_none_are_refused_with_their_number_and_keys(rows, message):
    trainer = SFTTrainer(CONFIG)
    with pytest.raises(TrainerError, match=message):
        trainer.check_dataset(rows)
    assert trainer.state == "created"


def test_rows_of_another_form_are_refused():
    pair = {"prompt": "x", "chosen": "y", "rejected": "z"}
    with pytest.raises(
        TrainerError, match="row 0: is of the form 'preference', of 2 sequences, and this trainer takes 1"
    ):
        SFTTrainer(CONFIG).check_dataset([pair])
    Trainer.get("dpo")(CONFIG).check_dataset([pair])
    with pytest.raises(TrainerError, match=r"train_data\[1\]: 1 sequences, and 2 belong together"):
        Trainer.get("dpo")(CONFIG).check_dataset([[ROWS[0], ROWS[0]], [ROWS[0]]])


def test_an_empty_test_set_is_none():
    SFTTrainer(CONFIG).check_dataset(ROWS, [])


def reward_module(**functions):
    module = types.ModuleType("my_rewards")
    vars(module).update(functions)
    sys.modules["my_rewards"] = module


def test_a_reward_function_is_found_now():
    reward_module(good=lambda row: 1, no_function=3)
    trainer = Rewarded(CONFIG)
    trainer.check_reward("my_rewards:good", probe=ROWS[0])
    refusals = {
        "my_rewards.good": "is not of the form module:function",
        "../evil:run": "is not of the form module:function",
        "no_such_module:f": "no_such_module cannot be imported: ModuleNotFoundError",
        "my_rewards:missing": "my_rewards has no missing",
        "my_rewards:no_function": "int cannot be called",
    }
    for path, message in refusals.items():
        with pytest.raises(TrainerError, match=message):
            trainer.check_reward(path)
    del sys.modules["my_rewards"]
    SFTTrainer(CONFIG).check_reward(None)
    with pytest.raises(TrainerError, match="needs a reward function"):
        trainer.check_reward(None)


async def later(row):
    return 2.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda row: float("nan"), "gave nan"),
        (lambda row: "1", "gave '1'"),
        (lambda row: True, "gave True"),
        (lambda row: row.nothing, "fails on the row it was tried on: AttributeError"),
    ],
)
def test_a_probe_wants_a_finite_number(function, message):
    trainer = SFTTrainer(CONFIG)
    with pytest.raises(TrainerError, match=message):
        trainer.check_reward(function, probe=ROWS[0])
    trainer.check_reward(later, probe=ROWS[0])


def test_an_agent_is_a_function_or_has_run_agent():
    trainer = SFTTrainer(CONFIG)
    trainer.check_agent(print)
    trainer.check_agent("json:dumps")
    trainer.check_agent(types.SimpleNamespace(run_agent=print))
    with pytest.raises(TrainerError, match="agent: int is neither a function nor has run_agent"):
        trainer.check_agent(3)


def test_a_mapping_changes_and_an_object_replaces():
    trainer = SFTTrainer(CONFIG)
    trainer.check_config({"epochs": 3})
    assert (trainer.config.epochs, trainer.config.name) == (3, "run")
    trainer.check_config(SFTTrainer({**CONFIG, "name": "other"}).config)
    assert (trainer.config.epochs, trainer.config.name) == (1, "other")
    with pytest.raises(ConfigError, match="epochz"):
        trainer.check_config({"epochz": 3})
    with pytest.raises(ConfigError, match="'dpo' is another trainer than 'sft'"):
        SFTTrainer({**CONFIG, "type": "dpo"})


def test_an_eval_interval_is_given_exactly_with_test_data():
    with pytest.raises(ConfigError, match="eval_interval: missing"):
        SFTTrainer(CONFIG, train_data=ROWS, test_data=ROWS).validate()
    with pytest.raises(ConfigError, match="eval_interval: there is nothing to evaluate on"):
        SFTTrainer({**CONFIG, "eval_interval": 2}, train_data=ROWS).validate()


def test_two_that_resume_are_refused():
    both = [{"type": "state", "auto_resume": True}, {"type": "state", "auto_resume": True}]
    with pytest.raises(ConfigError, match="only one may have auto_resume"):
        SFTTrainer({**CONFIG, "checkpoint": both})


def test_a_class_of_ones_own_has_its_parents_defaults(tmp_path):
    class Shy(SFTTrainer):
        name = "shy-of-checks"

    class Bold(Shy):
        config_defaults = {"optimizer": {"weight_decay": 0.5}, "batch_size": 3}  # noqa: RUF012

    for trainer in (SFTTrainer, Shy, Bold):
        config = trainer({**CONFIG, "epochs": 2}).config
        assert (config.optimizer.lr, config.scheduler.name, config.epochs) == (2e-4, "linear", 2)
    assert (config.optimizer.weight_decay, config.batch_size) == (0.5, 3)
    assert Bold({**CONFIG, "learning_rate": 1.0}).config.optimizer.lr == 1.0
    assert Shy(CONFIG).config.type == "shy-of-checks"
    file = tmp_path / "config.yaml"
    file.write_text("name: run\nmodel: farstep/tiny\n")
    assert Trainer.get("dpo")(str(file)).config.type == "dpo"
    assert Trainer.get("dpo")(file).config.optimizer.lr == 1e-5
    file.write_text("type: sft\nname: run\nmodel: farstep/tiny\n")
    with pytest.raises(ConfigError, match="'sft' is another trainer than 'dpo'"):
        Trainer.get("dpo")(file)


def test_early_stopping_and_the_best_checkpoint_want_evaluations():
    for changes, field in (
        ({"early_stopping": {"patience": 2}}, "early_stopping"),
        ({"checkpoint": {"keep_best": 1}}, r"checkpoint\[0\].keep_best"),
    ):
        trainer = SFTTrainer({"model": "farstep/tiny", **changes}, train_data=ROWS)
        with pytest.raises(ConfigError, match=f"{field}: goes by evaluations, and there are none"):
            trainer.validate()
        SFTTrainer({"model": "farstep/tiny", "eval_interval": 1, **changes}, train_data=ROWS, test_data=ROWS).validate()


def test_what_is_held_out_is_of_rows_and_only_where_nothing_else_is_there():
    config = {"model": "farstep/tiny", "eval_interval": 1, "data": {"train_eval_split": 0.5}}
    texts = [{"prompt": "a", "response": "b"}]
    with pytest.raises(ConfigError, match="train_eval_split: there is test data already"):
        SFTTrainer(config, train_data=texts, test_data=texts).validate()
    with pytest.raises(TrainerError, match="train_eval_split: parts rows, and these are tokens already"):
        SFTTrainer(config, train_data=ROWS).validate()


def test_prompts_may_be_under_a_key_of_ones_own():
    config = {"model": "farstep/tiny", "data": {"prompt_key": "question"}}
    GRPOTrainer(config, train_data=[{"question": "x"}], reward_fn=len).check_dataset([{"question": "x"}])
    with pytest.raises(TrainerError, match=r"row 1: no 'question' .*'prompt'"):
        GRPOTrainer(config).check_dataset([{"question": "x"}, {"prompt": "x"}])
    with pytest.raises(TrainerError, match="row 0, question: int, not a list of messages"):
        GRPOTrainer(config).check_dataset([{"question": 3}])


def test_another_trainers_name_and_no_trainers_name_are_told_apart():
    with pytest.raises(ConfigError, match=r"type: 'dpo' is another trainer than 'sft' \(Trainer.get\('dpo'\)"):
        SFTTrainer({"model": "farstep/tiny", "type": "dpo"})
    with pytest.raises(ConfigError, match=r"type: there is no trainer 'grop' \(did you mean 'grpo'\?\)"):
        SFTTrainer({"model": "farstep/tiny", "type": "grop"})
