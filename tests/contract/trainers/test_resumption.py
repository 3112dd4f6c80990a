"""Checkpoints, and runs that go on from them: after a kill −9, a limit, a kill switch."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest

from farstep.trainers import ConfigError, DPOTrainer, SFTTrainer, Tracker, TrainerError
from tests.support.processes import KEY
from tests.support.trainees import Recorder, pairs, rows, settings

RESUMED = [{"type": "state", "save_every_n_steps": 3, "auto_resume": True}]


def fit(service, config, data, *, trainer=SFTTrainer, **options):
    events = Recorder()
    result = trainer(config, client=service, train_data=data, event_sinks=[events], **options).fit()
    return result, events


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


KILLED = """
    import os, signal, sys
    from farstep import ServiceClient
    from farstep.trainers import SFTTrainer
    from tests.support.trainees import rows, settings

    trainer_url, sampler_url, output_dir = sys.argv[1:]

    def kill(event):
        if event["type"] == "log" and event["step"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = {"type": "state", "save_every_n_steps": 3, "auto_resume": True}
    config = settings(output_dir, epochs=3, checkpoint=[engine])
    service = ServiceClient.local(trainer_url=trainer_url, sampler_url=sampler_url)
    SFTTrainer(config, client=service, train_data=rows(14), event_sinks=[kill]).fit()
"""


def test_after_kill_9_the_losses_are_those_of_the_undisturbed_run(service, pair, tmp_path):
    undisturbed = settings(tmp_path / "whole", epochs=3, checkpoint=RESUMED)
    _, whole = fit(service, undisturbed, rows(14))
    config = settings(tmp_path / "killed", epochs=3, checkpoint=RESUMED)
    urls = [server.url for server in pair]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *urls, config["output_dir"]]
    root = str(Path(__file__).parents[3])
    env = {
        **os.environ,
        "FARSTEP_API_KEY": KEY,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    killed = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=110)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(config["output_dir"]) / "run"
    before = events_of(folder)
    assert before[-1]["type"] == "log"

    result, resumed = fit(service, config, rows(14))
    assert resumed[0]["resumed"] is True
    assert resumed[0]["step"] == 3
    assert resumed.values("step") == list(range(4, 13))
    assert resumed.values("loss") == whole.values("loss")[3:]  # to the bit
    assert resumed.values("grad_norm") == whole.values("grad_norm")[3:]
    assert resumed.values("learning_rate") == whole.values("learning_rate")[3:]
    assert result.steps == 12
    everything = events_of(folder)
    assert [event["seq"] for event in everything] == list(range(1, len(everything) + 1))
    assert [event["type"] for event in everything].count("completed") == 1
    assert resumed[0]["run_id"] == before[0]["run_id"]
    metrics = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [*range(1, before[-1]["step"] + 1), *range(4, 13)]


def test_dpo_goes_on_with_its_reference(service, tmp_path):
    whole_config = settings(tmp_path / "whole", epochs=3, checkpoint=RESUMED, batch_size=2)
    _, whole = fit(service, whole_config, pairs(4), trainer=DPOTrainer)
    config = settings(tmp_path / "cut", epochs=3, checkpoint=RESUMED, batch_size=2, exit_iteration_this_run=2)
    found = []
    for _ in range(3):
        result, events = fit(service, config, pairs(4), trainer=DPOTrainer)
        found += events.values("loss")
    assert result.steps == 6
    # the reference is asked again in other batches: padding changes the order of fp32 sums
    assert found == pytest.approx(whole.values("loss"), rel=1e-4)


def test_a_run_in_pieces_is_the_run_in_one(service, tmp_path):
    _, whole = fit(service, settings(tmp_path / "whole", epochs=2), rows(12))
    config = settings(tmp_path / "cut", epochs=2, checkpoint=RESUMED, exit_iteration_this_run=2)
    found, reasons, steps = [], [], []
    for _ in range(4):
        result, events = fit(service, config, rows(12))
        found += events.values("loss")
        reasons.append(result.stopped_because)
        steps += events.values("step", "checkpoint")
    assert found == whole.values("loss")
    assert ["exit_iteration_this_run" in reason for reason in reasons] == [True, True, True, False]
    assert steps == [2, 3, 4, 6]  # each once


class Remembering(Tracker):
    name = "remembering"
    began: ClassVar[list] = []

    def start(self, run):
        self.began.append(run.resume_id)
        return "the id that it gave"

    def log(self, metrics, step):
        pass


def test_a_trackers_run_goes_on_under_its_id(service, tmp_path):
    Remembering.began.clear()
    config = settings(tmp_path, checkpoint=RESUMED, exit_iteration_this_run=1, trackers=["remembering"])
    for _ in range(2):
        fit(service, config, rows(8))
    assert Remembering.began == ["", "the id that it gave"]


def test_a_run_that_is_done_makes_no_step_more_and_saves_nothing(service, tmp_path):
    config = settings(tmp_path, checkpoint=RESUMED)
    fit(service, config, rows(8))
    result, events = fit(service, config, rows(8))
    assert (result.steps, events.of("log"), events.of("checkpoint")) == (2, [], [])
    assert events[-1]["type"] == "completed"


def test_steps_epochs_and_the_end_save_each_step_once(service, tmp_path):
    config = settings(
        tmp_path, epochs=2, checkpoint=[{"type": "state", "save_every_n_steps": 2, "save_every_n_epochs": 1}]
    )
    _, events = fit(service, config, rows(12))  # 3 batches an epoch
    assert events.values("step", "checkpoint") == [2, 3, 4, 6]
    paths = events.values("path", "checkpoint")
    assert [path.rsplit("/", 1)[1] for path in paths] == ["step-000002", "step-000003", "step-000004", "step-000006"]
    kept = {each.path: each for each in service.list_checkpoints(events[0]["run_id"])}
    assert [kept[path].step for path in paths] == [2, 3, 4, 6]
    assert all("farstep.trainer" in kept[path].metadata for path in paths)


def test_only_the_last_and_the_best_are_kept(service, tmp_path):
    config = settings(
        tmp_path,
        epochs=6,
        optimizer={"lr": 1e-2},
        eval_interval=1,
        checkpoint=[{"type": "state", "save_every_n_steps": 1, "keep_last": 2, "keep_best": 1}],
    )
    data = rows(4)
    _, events = fit(service, config, data, test_data=data)
    losses = dict(zip(events.values("step", "eval"), events.values("eval/loss", "eval"), strict=True))
    kept = sorted(each.step for each in service.list_checkpoints(events[0]["run_id"]))
    assert kept == sorted({5, 6, min(losses, key=losses.get)})


def test_an_export_of_a_step_that_was_saved_leaves_its_state_for_good(service, tmp_path):
    """The stepping stone of an export expires; what a run goes on from does not."""
    config = settings(
        tmp_path, epochs=2, checkpoint=[{"save_every_n_steps": 2, "ttl_seconds": None}, {"type": "export"}]
    )
    _, events = fit(service, config, rows(4))
    assert events.values("kind", "checkpoint") == ["state", "export"]
    assert [(kept.step, kept.expires_at) for kept in service.list_checkpoints(events[0]["run_id"])] == [(2, None)]
    short = [{"save_every_n_steps": 1, "ttl_seconds": 600}, {"save_every_n_steps": 1}, {"type": "export"}]
    _, events = fit(service, settings(tmp_path, checkpoint=short), rows(4))
    assert [kept.expires_at for kept in service.list_checkpoints(events[0]["run_id"])] == [None]


def test_what_one_engine_keeps_no_other_removes(service, tmp_path):
    often = {"save_every_n_steps": 1, "keep_last": 1, "auto_resume": True}
    seldom = {"save_every_n_steps": 2, "save_end_of_training": False}
    _, events = fit(service, settings(tmp_path, epochs=5, checkpoint=[often, seldom]), rows(4))
    assert [kept.step for kept in service.list_checkpoints(events[0]["run_id"])] == [2, 4, 5]


def test_what_a_run_goes_on_from_is_removed_in_its_turn(service, tmp_path):
    saving = [{"save_every_n_steps": 1, "keep_last": 1, "auto_resume": True}]
    config = settings(tmp_path, epochs=3, checkpoint=saving, exit_iteration_this_run=1)
    for step in (1, 2, 3):
        result, events = fit(service, config, rows(4))
        assert [kept.step for kept in service.list_checkpoints(events[0]["run_id"])] == [step]
    assert result.steps == 3


def test_two_exports_do_not_write_over_each_other(service, tmp_path):
    both = [{"type": "export", "save_every_n_steps": 1}, {"type": "export", "name": "again"}]
    _, events = fit(service, settings(tmp_path, checkpoint=both), rows(4))
    places = [Path(event["path"]) for event in events.of("checkpoint")]
    assert [place.name for place in places] == ["step-000001", "step-000001-again"]
    assert all((place / "adapter_config.json").is_file() for place in places)
    with pytest.raises(ConfigError, match="one export would write over another"):
        SFTTrainer(settings(tmp_path, checkpoint=[{"type": "export"}, {"type": "export", "format": "merged"}]))


def test_the_kill_switch_ends_a_run_that_goes_on_without_it(service, tmp_path):
    switch = tmp_path / "stop"
    config = settings(tmp_path, epochs=2, checkpoint=RESUMED, kill_switch_path=str(switch))

    def touch(event):
        if event["type"] == "log" and event["step"] == 3:
            switch.touch()

    events = Recorder()
    trainer = SFTTrainer(config, client=service, train_data=rows(16), event_sinks=[events, touch])
    result = trainer.fit()
    assert trainer.state == "cancelled"
    assert str(switch) in result.stopped_because
    assert events[-1]["type"] == "cancelled"
    assert result.steps < 8
    assert events.values("step", "checkpoint")[-1] == result.steps
    switch.unlink()
    again, more = fit(service, config, rows(16))
    assert more.values("step")[0] == result.steps + 1
    assert again.steps == 8


def test_early_stopping_ends_a_run_that_gets_no_better(service, tmp_path):
    config = settings(
        tmp_path, epochs=20, eval_interval=1, optimizer={"lr": 0.0}, early_stopping={"patience": 2, "min_delta": 1e-3}
    )
    data = rows(4)
    result, events = fit(service, config, data, test_data=data)
    assert result.steps == 3
    assert "has not got better" in result.stopped_because
    assert events[-1]["type"] == "completed"
    assert events.values("step", "checkpoint") == [3]


def test_other_data_are_refused(service, tmp_path):
    config = settings(tmp_path, epochs=2, checkpoint=RESUMED, exit_iteration=1)
    fit(service, config, rows(8))
    with pytest.raises(TrainerError, match="not those that this run began with"):
        fit(service, config, rows(9))
    with pytest.raises(TrainerError, match="of the trainer 'sft', not of 'dpo'"):
        fit(service, config, pairs(8), trainer=DPOTrainer)


def test_two_trainers_in_one_folder_are_refused(service, tmp_path):
    with SFTTrainer(settings(tmp_path), client=service, train_data=rows(4)) as first:
        first.init()
        with pytest.raises(TrainerError, match="another process trains in"):
            fit(service, settings(tmp_path), rows(4))
    result, _ = fit(service, settings(tmp_path), rows(4))
    assert result.steps == 1


def test_without_auto_resume_a_run_begins_anew_and_keeps_what_was(service, tmp_path):
    fit(service, settings(tmp_path), rows(4))
    result, events = fit(service, settings(tmp_path), rows(4))
    assert result.steps == 1
    assert events[0]["seq"] == 1
    assert (tmp_path / "run" / "earlier" / "1" / "events.jsonl").exists()


def test_an_exported_adapter_loads_in_plain_peft(service, tmp_path):
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from farstep_model.embedded import model_dir

    config = settings(tmp_path, epochs=2, checkpoint=[{"type": "state"}, {"type": "export", "save_every_n_steps": 1}])
    data = rows(4)
    events = Recorder()
    with SFTTrainer(config, client=service, train_data=data, event_sinks=[events]) as trainer:
        trainer.validate()
        trainer.train()
        expected = trainer.client.forward([data[0].to_datum(targets="all")]).result().loss_fn_outputs[0]["logprobs"]
        by_hand = trainer.save_checkpoint(tmp_path / "mine")
    exported = [event for event in events.of("checkpoint") if event["kind"] == "export"]
    assert [Path(event["path"]).name for event in exported] == ["step-000001", "step-000002"]
    base = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    for folder in (exported[-1]["path"], by_hand):
        model = peft.PeftModel.from_pretrained(base, folder)
        ids = torch.tensor([data[0].tokens])
        with torch.no_grad():
            logprobs = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        # fp32; the worker multiplies through oneDNN, torch does not
        assert logprobs.tolist() == pytest.approx(expected.to_numpy().tolist(), abs=1e-4)
        base = model.unload()


def test_of_a_run_that_was_done_nothing_is_made_again_and_its_numbers_are_told(service, tmp_path):
    config = settings(tmp_path, checkpoint=[{"type": "state", "auto_resume": True}])
    first = SFTTrainer(config, client=service, train_data=rows(8)).fit()
    events = Recorder()
    again = SFTTrainer(config, client=service, train_data=rows(8), event_sinks=[events]).fit()
    assert (again.steps, again.loss) == (first.steps, first.loss)
    assert [event["type"] for event in events] == ["started", "completed"]
    assert events[-1]["metrics"]["loss"] == first.loss


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": {"base": "other/model"}}, "model.base"),
        ({"model": {"base": "farstep/tiny", "lora": {"r": 8}}}, "lora.r"),
    ],
)
def test_a_run_is_not_gone_on_with_by_another_model_or_adapter(service, tmp_path, changes, field):
    """The run would stay what it is, and the setting would count for nothing."""
    config = settings(tmp_path, checkpoint=[{"type": "state", "auto_resume": True}], exit_iteration=1)
    SFTTrainer(config, client=service, train_data=rows(8)).fit()
    with pytest.raises(TrainerError, match=rf"{field}: is .* the run that is to be gone on with has"):
        SFTTrainer(config | changes, client=service, train_data=rows(8)).fit()


def test_the_trainers_own_random_numbers_go_on(service, tmp_path):
    drawn = []

    class Draws(SFTTrainer):
        def pre_step(self, batch):
            drawn.append(self.rng.random())
            return batch

    whole = settings(tmp_path / "whole", epochs=4)
    fit(service, whole, rows(4), trainer=Draws)
    undisturbed, drawn[:] = list(drawn), []
    pieces = settings(tmp_path / "pieces", epochs=4, checkpoint=RESUMED, exit_iteration_this_run=2)
    for _ in range(2):
        fit(service, pieces, rows(4), trainer=Draws)
    assert drawn == undisturbed
    assert len(set(drawn)) == 4
