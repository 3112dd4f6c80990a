"""The supervised loops: a recipe that was killed goes on exactly as one that was not."""

import json

from tests.cookbook.recipes import BASE, CHAT

LOOP = {"model_name": BASE, "batch_size": 8, "learning_rate": 5e-3, "lora_rank": 8, "save_every": 4, "max_steps": 10}


def losses(metrics):
    """Of each step, every time that it was taken."""
    found = {}
    for row in metrics:
        found.setdefault(row["step"], []).append(row["train_mean_nll"])
    return found


def test_a_killed_loop_goes_on_as_if_undisturbed(recipes):
    def is_far():
        return len(recipes.metrics("killed")) >= 5  # the first checkpoint is of four steps, the second of eight

    recipes.run_until("sl_loop", "killed", is_far, **LOOP)
    again = losses(recipes.run("sl_loop", "killed", **LOOP))
    assert sorted(again) == list(range(10))
    twice = {step: values for step, values in again.items() if len(values) == 2}
    assert twice, "it was killed after its last checkpoint and goes on from that"
    assert all(before == after for before, after in twice.values())
    assert again[9][-1] < again[0][0]

    # From its first checkpoint on, undisturbed.
    first = recipes.checkpoints("killed")[0]
    (recipes.folder / "undisturbed").mkdir()
    (recipes.folder / "undisturbed/checkpoints.jsonl").write_text(json.dumps(first) + "\n")
    undisturbed = losses(recipes.run("sl_loop", "undisturbed", **LOOP))
    assert sorted(undisturbed) == list(range(4, 10))
    assert all(again[step][-1] == values[0] for step, values in undisturbed.items())


def test_the_pipelined_loop_with_rolling_checkpoints(recipes):
    metrics = recipes.run(
        "chat_sl.train", "rolling", model_name=CHAT, dataset="no_robots", batch_size=16, learning_rate=5e-3,
        lora_rank=8, max_length=256, eval_every=4, save_every=4, rolling_save_every=2, max_steps=8,
    )  # fmt: skip
    nll = [row["train_mean_nll"] for row in metrics if "train_mean_nll" in row]
    assert nll[-1] < nll[0]
    assert any("test/nll" in row for row in metrics)
    assert recipes.checkpoints("rolling")[-1]["name"] == "final"
