"""Roles through real servers: references, critics and reward models, and what each may be asked."""

import numpy as np
import pytest

from farstep import AdamParams, Datum
from farstep.rollout import SamplingParams
from farstep.trainers import (
    GRPOTrainer,
    MissingRoleCapability,
    PPOTrainer,
    Role,
    RoleError,
    SFTTrainer,
    TrainerError,
)
from tests.support.trainees import Recorder, rows, settings

TOKENS = [[1, 40, 41, 42, 50, 51, 2], [1, 43, 44, 52], [1, 45]]


@pytest.fixture
def trainer(service, tmp_path):
    with SFTTrainer(settings(tmp_path, optimizer={"lr": 2e-2}), client=service, train_data=rows(4)) as made:
        made.init()
        yield made


def trained_checkpoint(service, *, value_head=False, seed=5):
    """Of a run that has learnt something."""
    with service.create_lora_training_client("farstep/tiny", rank=4, seed=seed, value_head=value_head) as run:
        data = [row.to_datum() for row in rows(4, seed=3)]
        for _ in range(3):
            if value_head:
                values = [np.zeros(each.model_input.length) for each in data]
                known = [Datum(each.model_input, {"returns": one + 2, "values": one})
                         for each, one in zip(data, values, strict=True)]  # fmt: skip
                run.forward_backward(known, "value", {"clip": 10.0})
            run.forward_backward(data)
            run.optim_step(AdamParams(learning_rate=2e-2))
        return run.save_state("trained").result().path


def logprobs_of(service, path, tokens):
    """By a run of its own, position by position."""
    with service.create_training_client_from_state(path, with_sampler=False) as run:
        whole = [Datum.from_prompt_completion(each[:1], each[1:]) for each in tokens]
        return [each["logprobs"].to_numpy() for each in run.forward(whole).result().loss_fn_outputs]


def test_the_reference_is_what_the_run_began_with(service, trainer):
    """R14, R15: as long as its row, 0 first; training moves the policy and not the reference."""
    trainer.ensure_roles({"ref": Role("ref")})
    before = trainer.score_logprobs("ref", TOKENS)
    assert [len(each) for each in before] == [7, 4, 2]
    assert [each[0] for each in before] == [0.0] * 3
    assert all(value < 0 for each in before for value in each[1:])
    assert before == trainer.score_logprobs("policy", TOKENS)
    for _ in range(3):
        trainer.step(rows(4))
    np.testing.assert_allclose(np.concatenate(trainer.score_logprobs("ref", TOKENS)), np.concatenate(before), atol=1e-5)
    moved = np.concatenate(trainer.score_logprobs("policy", TOKENS))
    assert np.abs(moved - np.concatenate(before)).max() > 0.05
    row = rows(1, prompt=(4, 4), answer=(3, 3))[0]
    (scored,) = trainer.score_logprobs("ref", [row])
    assert scored[:4] == [0.0] * 4  # of a TrainSequence where it is trained
    assert scored[4:] == pytest.approx(trainer.score_logprobs("ref", [row.tokens])[0][4:], abs=1e-5)


def test_after_a_checkpoint_the_reference_is_that(service, tmp_path):
    path = trained_checkpoint(service)
    config = settings(tmp_path, model={"base": "farstep/tiny", "path": path, "lora": {"r": 4}})
    with SFTTrainer(config, client=service, train_data=rows(4)) as trainer:
        trainer.init()
        trainer.ensure_roles([Role("ref")])
        trainer.step(rows(4))
        expected = logprobs_of(service, path, TOKENS)
        for found, wanted in zip(trainer.score_logprobs("ref", TOKENS), expected, strict=True):
            np.testing.assert_allclose(found[1:], wanted, atol=1e-5)


def test_a_reference_with_a_path_is_that_checkpoint(service, trainer):
    path = trained_checkpoint(service)
    trainer.ensure_roles({"teacher": Role("teacher", path)})
    for found, wanted in zip(
        trainer.score_logprobs("teacher", TOKENS), logprobs_of(service, path, TOKENS), strict=True
    ):
        np.testing.assert_allclose(found[1:], wanted, atol=1e-5)
    again = trainer.roles.client_of("teacher")
    trainer.ensure_roles([Role("teacher", path)])  # once more changes nothing
    assert trainer.roles.client_of("teacher") is again
    with pytest.raises(RoleError, match="there is another role 'teacher'"):
        trainer.ensure_roles([Role("teacher")])


def test_a_critic_learns_with_a_rate_of_its_own(service, trainer):
    """R14, R15, and R17's other half: the policy is not touched."""
    trainer.ensure_roles([Role("critic", head="value", trainable=True, optimizer_lr=1e-2)])
    data = rows(4)
    assert trainer.score_values("critic", data) == [[0.0] * len(row) for row in data]
    policy = trainer.score_logprobs("policy", TOKENS)
    errors, metrics = [], {}
    for _ in range(12):
        values = trainer.score_values("critic", data)
        assert [len(each) for each in values] == [len(row) for row in data]
        assert all(each[0] == 0 for each in values)
        returns = [[1 - index / len(row) for index in range(len(row))] for row in data]
        known = [row.replace(values=v, returns=r) for row, v, r in zip(data, values, returns, strict=True)]
        metrics = trainer.train_values("critic", known, mini_bs=3)
        errors.append(metrics["loss"])
    assert errors[-1] < errors[0] / 2
    assert metrics["learning_rate"] == 1e-2
    assert trainer.score_logprobs("policy", TOKENS) == policy
    assert trainer.global_step == 0


def test_how_a_critics_batch_is_cut_changes_nothing(service, trainer):
    data = [row.replace(values=[0.0] * len(row), returns=[1.0] * len(row)) for row in rows(6, answer=(1, 9))]
    found = []
    for name, size in (("whole", None), ("cut", 2)):
        trainer.ensure_roles([Role(name, head="value", trainable=True, lr=1e-2)])
        for _ in range(3):
            metrics = trainer.train_values(name, data, mini_bs=size, cliprange_value=5.0)
        found.append(metrics)
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)
    assert found[1]["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-3)


def test_a_reward_model_says_one_number_for_each_row(service, trainer):
    path = trained_checkpoint(service, value_head=True)
    trainer.ensure_roles([Role("reward", path, head="reward"), Role("values", path, head="value")])
    scores = trainer.score_rewards("reward", TOKENS)
    assert len(scores) == 3
    assert len(set(scores)) == 3
    assert all(abs(score) > 1e-3 for score in scores)
    # a value stands at the token after the one it was read at: of a row that is one longer it is the last
    longer = [[*each, 2] for each in TOKENS]
    values = trainer.score_values("values", longer)
    assert scores == pytest.approx([each[-1] for each in values], abs=1e-5)


def test_what_a_role_cannot_do_is_said_with_its_name(service, trainer):
    with pytest.raises(RoleError, match="there is no role 'critic'") as caught:
        trainer.score_values("critic", TOKENS)
    assert caught.value.role == "critic"
    assert "policy" in caught.value.hint
    path = trained_checkpoint(service)
    trainer.ensure_roles([Role("ref"), Role("critic", path, head="value")])
    for call, role, ability in (
        (trainer.score_values, "ref", "values"),
        (trainer.score_rewards, "critic", "rewards"),
        (trainer.score_logprobs, "critic", "logprobs"),
        (trainer.train_values, "critic", "training"),
        (trainer.score_values, "policy", "values"),
    ):
        with pytest.raises(MissingRoleCapability, match=f"'{role}'.*{ability}") as missing:
            call(role, rows(1))
        assert (missing.value.role, missing.value.ability) == (role, ability)
    with pytest.raises(MissingRoleCapability, match="has no value head"):
        trainer.ensure_roles([Role("reward", path, head="reward")])
    with pytest.raises(RoleError, match="there is no role 'reward'"):
        trainer.score_rewards("reward", TOKENS)


def test_roles_end_with_their_trainer(service, tmp_path):
    with SFTTrainer(settings(tmp_path), client=service, train_data=rows(4)) as trainer:
        trainer.init()
        trainer.ensure_roles([Role("critic", head="value", trainable=True)])
        run_id = trainer.roles.client_of("critic").run_id
    with pytest.raises(Exception, match=run_id):
        service.resume_run(run_id)
    run = service.create_lora_training_client("farstep/tiny", rank=4)
    with SFTTrainer(settings(tmp_path, name="b"), client=run, train_data=rows(4)) as trainer:
        trainer.init()
        trainer.ensure_roles([Role("ref")])
        assert len(trainer.score_logprobs("ref", TOKENS)) == 3
        with pytest.raises(RoleError, match="a TrainingClient makes none"):
            trainer.ensure_roles([Role("critic", head="value")])


def test_a_critic_is_kept_with_the_checkpoint_as_long_as_that(service, tmp_path):
    config = settings(
        tmp_path, batch_size=2, max_steps=3, sampling={"max_tokens": 2}, rl={"group_size": 2},
        checkpoint=[{"type": "state", "save_every_n_steps": 1, "keep_last": 1}],
    )  # fmt: skip
    events = Recorder()
    data = [{"prompt": f"{number}+{number}?"} for number in range(11, 17)]
    trainer = PPOTrainer(config, client=service, train_data=data, reward_fn=lambda record: 1.0, event_sinks=[events])
    runs = []
    with trainer:
        trainer.validate()
        trainer.init()
        runs.append(trainer.roles.client_of("critic").run_id)
        trainer.train()
    policy = events[0]["run_id"]
    assert [each.step for each in service.list_checkpoints(policy)] == [0]  # all of it was the critic's warm-up
    # removed with the next one: the last, and the one before
    assert [each.path.rsplit("/", 1)[1] for each in service.list_checkpoints(runs[0])] == ["step-000002", "step-000003"]


def test_verbs_for_a_loop_of_ones_own(service, tmp_path):
    """R3: inside a session alone; fresh weights; tokens that decode to what was said."""
    prompts = [{"prompt": "12+30?", "answer": "42"}, {"prompt": "11+11?", "answer": "22"}]
    config = settings(tmp_path)
    with GRPOTrainer(config, client=service, train_data=prompts, reward_fn=lambda record: 1.0) as trainer:
        with pytest.raises(TrainerError, match="rollout_session needs init"):
            trainer.rollout_session()
        trainer.init()
        with pytest.raises(RuntimeError, match="needs an open session"):
            trainer.rollout_batch(["a"])
        (batch,) = trainer.load_prompt_batches(prompts, batch_size=4)
        assert [item.solutions for item in batch.items] == ["42", "22"]
        for version in (1, 2):
            with trainer.rollout_session(sampling_params=SamplingParams(max_new_tokens=6, seed=3)) as session:
                rollout = trainer.rollout_token_batch([item.tokens for item in batch.items], 3)
                assert session.policy_version == version
                assert [len(group.samples) for group in rollout.groups] == [3, 3]
                mine = [with_share(row, row.reward + 1.0) for row in rollout.rows]
            trainer.step(mine, "importance_sampling")
        with pytest.raises(RuntimeError, match="needs an open session"):
            trainer.rollout_batch(["a"])


def with_share(row, value):
    return row.replace(advantages=[value * weight for weight in row.loss_mask])
