"""Other recipes that need neither a network, nor a sandbox, nor images or sound: a few steps of each, in small."""

import math

import pytest

from tests.cookbook.recipes import BASE, CHAT

RL = {"group_size": 4, "max_tokens": 16, "max_steps": 2}
GAME = {"model_name": CHAT, "renderer_name": "qwen3_disable_thinking", "batch_size": 4, "eval_every": 0}
RECIPES = {
    "sl_basic": {"model_name": BASE, "max_steps": 1, "eval_every": 0},
    "rl_basic": {"model_name": BASE, "max_tokens": 8, "max_steps": 1},
    "rl_loop": {"model_name": BASE, "batch_size": 8, "save_every": 1, **RL},
    "math_rl.train": {"model_name": CHAT, "env": "gsm8k", "groups_per_batch": 8, "eval_every": 2, **RL},
    "math_rl.train off policy": {
        "model_name": BASE, "env": "arithmetic", "groups_per_batch": 4, "max_steps_off_policy": 2, "eval_every": 0,
        **RL,
    },
    "math_rl.train in minibatches": {
        "model_name": BASE, "env": "arithmetic", "groups_per_batch": 4, "eval_every": 0, "compute_post_kl": True,
        "stream_minibatch_config__groups_per_batch": 4, "stream_minibatch_config__num_minibatches": 2, **RL,
    },
    "prompt_distillation.train": {
        "model_name": CHAT, "file_path": "arithmetic.jsonl", "batch_size": 32, "max_length": 256, "eval_every": 0,
        "max_steps": 2,
    },
    "distillation.on_policy_distillation": {
        "model_name": BASE, "teacher_model": BASE, "groups_per_batch": 8, "eval_every": 0, **RL,
    },
    "distillation.on_policy_multi_teacher": {
        "model_name": BASE, "deepmath_teacher_model": BASE, "tulu3_teacher_model": CHAT,
        "deepmath_groups_per_batch": 4, "tulu3_groups_per_batch": 4, "eval_every": 0, **RL,
    },
    "distillation.off_policy_reasoning": {
        "model_name": BASE, "renderer_name": "role_colon", "batch_size": 8, "buffer_size": 16, "max_prompts": 16,
        "max_length": 256, "lora_rank": 8, "eval_every": 0,
    },
    "sdft.train": {
        "model_name": CHAT, "dataset": "toolalpaca", "groups_per_batch": 4, "lora_rank": 8, "topk": 4,
        "eval_every": 0, "max_tokens": 16, "max_steps": 2,
    },
    "preference.shorter.train": {**GAME, **RL},
    "multiplayer_rl.guess_number.train": {
        **GAME, "batch_size": 2, "group_size": 2, "max_tokens": 4, "max_steps": 1,
    },
    "rl_numerics_check.train": {
        "model_name": CHAT, "groups_per_batch": 2, "task__num_pages_min": 1, "task__num_pages_max": 2,
        "task__page_chars": 200, "max_trajectory_tokens": 2000, **RL, "max_tokens": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs(recipes, name):
    log_path = name.replace(" ", "-")
    metrics = recipes.run(name.split()[0], log_path, **RECIPES[name])
    assert metrics
    numbers = [value for row in metrics for value in row.values() if isinstance(value, float)]
    assert all(math.isfinite(number) for number in numbers)
    assert recipes.checkpoints(log_path), "what was trained is kept"
