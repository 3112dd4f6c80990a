"""The report of real runs, and what is kept of their batches for it."""

import json

import numpy as np
import pytest

from farstep.trainers import SFTTrainer, TrainerError
from farstep.trainers.report.record import read_run
from tests.support.trainees import rows, settings


def kept(folder):
    return {batch["step"]: batch for batch in map(json.loads, (folder / "batches.jsonl").read_text().splitlines())}


def test_of_batches_the_first_ones_and_the_last_are_kept_as_they_were(service, tmp_path):
    data = rows(6)
    config = settings(tmp_path, batch_size=6, epochs=11, optimizer={"lr": 0.0}, data={"shuffle": False})
    SFTTrainer(config, client=service, train_data=data).fit()
    found = kept(tmp_path / "run")
    assert sorted(found) == [1, 2, 4, 8, 11]
    run = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
    outputs = run.forward([row.to_datum() for row in data]).result().loss_fn_outputs
    for step in (1, 11):
        assert found[step]["num_rows"] == 6
        for row, given, output in zip(found[step]["rows"], data, outputs, strict=False):
            assert row["tokens"] == given.tokens
            assert row["mask"] == given.loss_mask
            # rounded to five places in the file
            np.testing.assert_allclose(row["logprobs"][1:], output["logprobs"].to_numpy(), atol=1e-5, rtol=0)
            assert row["text"] is None  # nobody has asked for a tokenizer


def test_text_is_shown_token_by_token_where_there_was_some(service, tmp_path):
    SFTTrainer(settings(tmp_path), client=service, train_data=[{"prompt": "shout apple", "response": "APPLE"}]).fit()
    (row,) = kept(tmp_path / "run")[1]["rows"]
    assert "".join(row["text"]).count("APPLE") == 1
    trained = "".join(text for text, weight in zip(row["text"], row["mask"], strict=True) if weight)
    assert trained == "APPLE<|im_end|>"


@pytest.mark.parametrize("report", [True, False])
def test_a_run_ends_with_its_report_if_it_is_wanted(service, tmp_path, report):
    SFTTrainer(settings(tmp_path, report=report), client=service, train_data=rows(4)).fit()
    path = tmp_path / "run" / "report.html"
    assert path.exists() is report
    assert not report or "completed" in path.read_text()


def test_a_run_that_fails_has_one_too(service, tmp_path):
    class Breaks(SFTTrainer):
        def post_step(self, metrics):
            raise ZeroDivisionError("in the first step")

    with pytest.raises(TrainerError):
        Breaks(settings(tmp_path), client=service, train_data=rows(4)).fit()
    text = (tmp_path / "run" / "report.html").read_text()
    assert "ZeroDivisionError" in text
    assert "in the first step" in text


def test_a_report_that_cannot_be_written_does_not_harm_the_run(service, tmp_path, caplog):
    def in_the_way(event):
        (tmp_path / "run" / "report.html").mkdir()
        (tmp_path / "run" / "batches.jsonl").mkdir()

    SFTTrainer(settings(tmp_path), client=service, train_data=rows(4), callbacks=[{"on_started": in_the_way}]).fit()
    assert read_run(tmp_path / "run").state == "completed"
    assert "no report of the run" in caplog.text
    assert "batches are not kept" in caplog.text


def test_a_dry_run_leaves_the_runs_own_folder_alone(service, tmp_path):
    """K6: and what the run has saved is still gone on with afterwards."""
    saved = [{"type": "state", "auto_resume": True}]
    SFTTrainer(settings(tmp_path, checkpoint=saved), client=service, train_data=rows(8)).fit()
    before = (tmp_path / "run" / "run.json").read_text()
    config = settings(tmp_path, checkpoint=saved, epochs=90, dry_run=True)
    trainer = SFTTrainer(config, client=service, train_data=rows(70))
    result = trainer.fit()
    assert result.steps == 10
    assert (tmp_path / "run" / "run.json").read_text() == before
    started = read_run(tmp_path / "run-dry-run").started
    assert (started["dry_run"], started["num_examples"]) == (True, 50)
