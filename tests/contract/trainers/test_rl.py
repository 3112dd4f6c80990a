"""GRPO, GSPO and PPO through real servers: they learn, and what they say of ratios, critics and roles is so."""

import numpy as np
import pytest

from farstep.trainers import GRPOTrainer, GSPOTrainer, PPOTrainer
from tests.support.trainees import Recorder, settings

PROMPTS = [{"prompt": f"{number}+{number}?"} for number in (12, 25, 38, 47, 51, 64, 76, 93)]


def ones(completion):
    """The share of an answer that is the digit 1: one in seven of what the model says to additions."""
    return completion.count("1") / max(len(completion), 1)


def rl_settings(output_dir, **changes):
    changes = {"optimizer": {"lr": 1e-2}, "batch_size": 8, "max_steps": 8, **changes}
    changes["rl"] = {"group_size": 8, **changes.get("rl", {})}
    changes["sampling"] = {"max_tokens": 4, "ignore_eos": True, **changes.get("sampling", {})}
    return settings(output_dir, **changes)


def fit(service, config, *, trainer=GRPOTrainer, data=PROMPTS, reward=ones, **options):
    events = Recorder()
    made = trainer(config, client=service, train_data=data, reward_fn=reward, event_sinks=[events], **options)
    return made.fit(), events


@pytest.mark.parametrize(
    ("trainer", "rl"),
    [(GRPOTrainer, {}), (GSPOTrainer, {}), (PPOTrainer, {"critic": {"warmup_steps": 2, "lr": 1e-2}})],
)
def test_rewards_rise(service, tmp_path, trainer, rl):
    config = rl_settings(tmp_path, rl=rl, max_steps=12 if trainer is PPOTrainer else 8)
    _, events = fit(service, config, trainer=trainer)
    rewards = events.values("rollout/reward_mean")
    print(rewards)
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.2
