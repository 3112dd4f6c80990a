"""Reinforcement learning: the reward rises, whatever the loss."""

import pytest

from tests.cookbook.recipes import BASE


@pytest.fixture(scope="module")
def start(recipes):
    """A policy that knows the way in which the environment asks."""
    recipes.run(
        "chat_sl.train", "warm", model_name=BASE, dataset="arithmetic.jsonl", batch_size=32, learning_rate=1e-2,
        lora_rank=16, max_length=256, num_epochs=3, eval_every=0, save_every=0,
    )  # fmt: skip
    return recipes.checkpoints("warm")[-1]["state_path"]


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "stable_reinforce", "ppo"])
def test_the_reward_on_sums_rises(recipes, start, loss_fn):
    metrics = recipes.run(
        "math_rl.train", f"rl-{loss_fn}", model_name=BASE, env="arithmetic", load_checkpoint_path=start, lora_rank=16,
        group_size=8, groups_per_batch=16, learning_rate=4e-3, max_tokens=40, loss_fn=loss_fn, eval_every=0,
        save_every=0, max_steps=14,
    )  # fmt: skip
    rewards = [row["env/all/correct"] for row in metrics if "env/all/correct" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
