"""Reinforcement learning: the reward rises, whatever the loss."""

import pytest

from tests.cookbook.recipes import CHAT

MODEL = {"model_name": CHAT, "renderer_name": "qwen3_instruct", "lora_rank": 16}


@pytest.fixture(scope="module")
def start(recipes):
    """A policy that knows the way in which the environment asks, and works out a third of its answers."""
    recipes.run(
        "chat_sl.train", "warm", **MODEL, dataset="arithmetic.jsonl", batch_size=32, learning_rate=5e-3, max_length=256,
        eval_every=0, save_every=0, max_steps=36,
    )  # fmt: skip
    return recipes.checkpoints("warm")[-1]["state_path"]


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "stable_reinforce", "ppo"])
def test_the_reward_on_sums_rises(recipes, start, loss_fn):
    metrics = recipes.run(
        "math_rl.train", f"rl-{loss_fn}", **MODEL, env="arithmetic", load_checkpoint_path=start, group_size=8,
        groups_per_batch=16, learning_rate=1e-3, max_tokens=40, loss_fn=loss_fn, eval_every=0, save_every=0,
        max_steps=12,
    )  # fmt: skip
    rewards = [row["env/all/correct"] for row in metrics if "env/all/correct" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards
