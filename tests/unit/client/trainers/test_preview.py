"""What is said before a run: rows, steps, rates, and a time only where one was measured."""

import json
from types import SimpleNamespace

import pytest

from farstep.trainers.config import load_config
from farstep.trainers.preview import LaunchPreview, data_line, estimate, rates
from farstep.trainers.schedules import Schedule


def test_rates_at_the_steps_where_the_schedule_turns():
    cosine = Schedule.get("cosine")(total_steps=100, warmup_steps=10)
    found = rates(cosine, 1e-3, 100)
    assert [step for step, _ in found] == [1, 11, 50, 100]
    assert found[0][1] == 0.0
    assert found[1][1] == pytest.approx(1e-3)
    assert found[3][1] < 1e-5
    assert rates(Schedule.get("constant")(total_steps=100), 1e-3, 100) == ((1, 1e-3),)
    assert rates(None, 1e-3, 100) == rates(cosine, 1e-3, 0) == ()


def test_a_rate_that_never_changes_is_called_constant(tmp_path):
    about = {"trainer": "sft", "name": "a", "base_model": "m", "folder": "f", "first_step": 0, "epochs": 1,
             "batch_size": 4, "num_examples": 8, "data": {}, "num_eval_examples": 0, "eval_interval": 0}  # fmt: skip
    told = [LaunchPreview(**about, total_steps=steps, learning_rates=found).lines()["learning rate"]
            for steps, found in ((8, ((1, 1e-3),)), (1, ((1, 1e-3),)), (8, ((1, 0.0), (8, 1e-3))))]  # fmt: skip
    assert told == ["0.001, constant", "0.001 at step 1", "0 at step 1, 0.001 at step 8"]


def test_rows_tokens_and_what_was_skipped():
    report = {"rows": 1000, "tokens": 81222, "targets": 20101, "truncated": 12, "dropped_no_targets": 10}
    assert data_line(report, 990) == (
        "990 examples of 1,000 rows, 81,222 tokens, 20,101 of them trained; dropped no targets 10, truncated 12"
    )
    assert data_line({"rows": 5, "tokens": 0}, 5) == "5 examples of 5 rows; none skipped"
    assert data_line({}, 5) == "5 examples"


class Rows:
    def __init__(self, count, tokens):
        self.count, self.report = count, {"rows": count, "tokens": tokens}

    def __len__(self):
        return self.count


def trainer(tmp_path, *, tokens=1000, at=0):
    config = load_config({"name": "run", "model": "m", "batch_size": 10, "output_dir": str(tmp_path)})
    folder = SimpleNamespace(path=tmp_path / "run")
    rows = Rows(100, tokens)
    return SimpleNamespace(
        config=config,
        folder=folder,
        train_rows=rows,
        training_horizon=40,
        global_step=at,
        name="sft",
        eval_rows=None,
        requires_rollout=False,
        horizon=SimpleNamespace(epochs=4),
    )


def earlier(folder, *, model="m", speeds=(1.0, 50.0, 50.0, 60.0), is_dry=False):
    folder.mkdir(parents=True)
    events = [{"seq": 1, "type": "started", "trainer": "sft", "base_model": model, "dry_run": is_dry}]
    for seq, speed in enumerate(speeds, start=2):
        events.append({"seq": seq, "type": "log", "tokens_per_s": speed, "time/step_s": 2.0})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_time_is_estimated_from_what_was_measured_and_from_nothing_else(tmp_path):
    assert estimate(trainer(tmp_path)) == (None, "")
    assert "not measured yet" in LaunchPreview.of(trainer(tmp_path)).lines()["time"]
    earlier(tmp_path / "run" / "earlier" / "1", model="another")
    assert estimate(trainer(tmp_path)) == (None, "")
    earlier(tmp_path / "run-dry-run", is_dry=True)
    # 100 tokens a step at the median of 50 tokens a second, without the first step's
    assert estimate(trainer(tmp_path)) == (80.0, "50 tokens/s in the dry run")
    assert estimate(trainer(tmp_path, at=20))[0] == 40.0
    assert estimate(trainer(tmp_path, tokens=0)) == (80.0, "2.00 s a step in the dry run")
    assert LaunchPreview.of(trainer(tmp_path)).lines()["time"] == "about 80 s (50 tokens/s in the dry run)"
