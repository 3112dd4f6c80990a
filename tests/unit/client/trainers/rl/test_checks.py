"""What is said of a configuration of reinforcement learning before anything is paid for: no server, no network."""

import pytest

from farstep.rollout import LossMaskPolicy
from farstep.trainers import (
    ConfigError,
    GRPOTrainer,
    GSPOTrainer,
    PPOTrainer,
    Role,
    RoleError,
    Trainer,
    TrainerConfig,
    TrainerError,
    TrainSequence,
)
from farstep.trainers.rl.sampling import rollout_params, session_settings

CONFIG = {"model": "farstep/tiny"}
ROWS = [{"prompt": "12+30?", "answer": "42"}]


def reward(completion, answer):
    return float(answer in completion)


def agent(ctx, batch):
    return 1.0


def test_it_is_found_by_its_name():
    assert {"grpo", "gspo", "ppo"} <= set(Trainer.names())
    assert Trainer.get("ppo") is PPOTrainer


def test_a_reward_is_needed_and_its_parameters_have_names_of_records():
    trainer = GRPOTrainer(CONFIG, train_data=ROWS)
    with pytest.raises(TrainerError, match="needs a reward function"):
        trainer.validate()
    with pytest.raises(TrainerError, match="no record has truth") as caught:
        GRPOTrainer(CONFIG, train_data=ROWS, reward_fn=lambda completion, truth: 0).validate()
    assert caught.value.field == "reward_fn"
    trainer = GRPOTrainer(CONFIG, train_data=ROWS, reward_fn=reward)
    trainer.validate()
    assert trainer.state == "validated"
    named = GRPOTrainer({**CONFIG, "reward": f"{__name__}:missing"}, train_data=ROWS)
    with pytest.raises(TrainerError, match=r"missing|cannot be imported"):
        named.validate()


def test_the_configurations_reward_and_agent_are_taken():
    trainer = GRPOTrainer({**CONFIG, "reward": reward}, train_data=ROWS)
    trainer.validate()
    assert trainer.reward_fn is reward
    trainer = GRPOTrainer({**CONFIG, "agent": agent}, train_data=ROWS)  # which gives the reward itself
    trainer.validate()
    assert trainer.agent is agent

    class Walker:
        def run_agent(self, ctx, batch):
            return 0.0

    walker = Walker()
    trainer = PPOTrainer(CONFIG, train_data=ROWS, agent=walker, reward_fn=reward)
    trainer.validate()
    assert trainer.agent == walker.run_agent


def test_rows_need_a_prompt():
    with pytest.raises(TrainerError, match="row 1"):
        GRPOTrainer(CONFIG, train_data=[*ROWS, {"question": "?"}], reward_fn=reward).validate()

    sequence = TrainSequence.from_prompt_completion([1, 2], [3])
    with pytest.raises(TrainerError, match="prompts are needed"):
        GRPOTrainer(CONFIG, train_data=[sequence], reward_fn=reward).validate()


def test_defaults_are_the_algorithms():
    bounds = {kind: GRPOTrainer.policy_loss.fget(kind({**CONFIG})) for kind in (GRPOTrainer, GSPOTrainer, PPOTrainer)}
    assert (bounds[GRPOTrainer].low, bounds[GRPOTrainer].high) == (0.8, 1.2)
    assert bounds[GSPOTrainer].high == 1 + 3e-4
    assert bounds[GSPOTrainer].level == "sequence"
    assert GSPOTrainer(CONFIG).config.rl.loss_aggregation == "sequence"
    assert PPOTrainer(CONFIG).config.rl.loss_aggregation == "token"
    with pytest.raises(ConfigError, match=r"rl\.dual_clip"):
        GRPOTrainer({**CONFIG, "rl": {"dual_clip": 0.5}})


def test_what_the_configuration_says_of_sampling():
    config = TrainerConfig(
        type="grpo", model="farstep/tiny", seed=3, max_prompt_length=9,
        sampling={"max_tokens": 5, "top_k": 4, "stop": ["x", 7], "max_context_length": 50},
    )  # fmt: skip
    params = rollout_params(config, max_seq_len=40)
    assert (params.max_new_tokens, params.top_k, params.max_prompt_len, params.max_context_len) == (5, 4, 9, 40)
    assert (params.stop_strings, list(params.stop_token_ids), params.seed) == (["x"], [7], 3)
    assert rollout_params(config, max_seq_len=None).max_context_len == 50
    assert not params.is_models_own
    assert rollout_params(TrainerConfig(type="grpo", model="m"), max_seq_len=None).is_models_own


@pytest.mark.parametrize(
    ("setting", "value"), [("temperature", 0.7), ("top_p", 0.9), ("min_p", 0.1), ("greedy", True), ("top_k", 1)]
)
def test_what_makes_it_another_distribution(setting, value):
    config = TrainerConfig(type="grpo", model="m", sampling={setting: value})
    assert not rollout_params(config, max_seq_len=None).is_models_own


def test_what_the_configuration_says_of_rollouts():
    config = TrainerConfig(
        type="ppo", model="m", solutions_key="truth",
        rl={"on_agent_error": "zero_reward", "max_staleness": 2, "timeout_s": 3, "max_retries": 0, "max_running": 5,
            "loss_mask": {"assistant_text": False}},
    )  # fmt: skip
    settings = session_settings(config, has_agent=True)
    assert settings["on_failure"] == "reward"
    assert (settings["max_staleness"], settings["timeout_s"], settings["max_running_prompts"]) == (2, 3, 5)
    assert (settings["proxy"], settings["answer_key"], settings["retries"].tool_failure) == (True, "truth", 0)
    assert settings["loss_mask_policy"] == LossMaskPolicy(assistant_text=False, final_assistant_text=True)
    plain = session_settings(TrainerConfig(type="ppo", model="m"), has_agent=False)
    assert (plain["max_staleness"], plain["proxy"], plain["answer_key"]) == (None, False, None)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ({"name": "policy"}, "is no name"),
        ({"name": ""}, "is no name"),
        ({"name": "r", "head": "reward"}, "has no path"),
        ({"name": "r", "head": "vocabulary"}, "no head 'vocabulary'"),
        ({"name": "ref", "trainable": True}, "cannot be trained"),
        ({"name": "c", "head": "value", "lr": -1.0}, "below 0"),
        ({"name": "c", "head": "value", "lr": float("nan")}, "below 0"),
    ],
)
def test_roles_that_cannot_be(role, message):
    with pytest.raises(RoleError, match=message):
        Role(**role)


def test_arenos_name_of_a_rate():
    assert Role("critic", head="value", trainable=True, optimizer_lr=3e-5).lr == 3e-5
    assert Role("ref") == Role("ref", None)
