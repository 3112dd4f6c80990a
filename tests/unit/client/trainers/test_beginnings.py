"""Runs that come to nothing before their first step: they say so as every run does, to whoever listens."""

import json

import pytest

from farstep.trainers import ConfigError, DataError, SFTTrainer, TrainerError
from farstep.trainers.events import read_events
from farstep.trainers.run_folder import RunFolder
from tests.support.trainees import Recorder, rows, settings


class Unreachable(SFTTrainer):
    def create_client(self, resume_from=None):
        raise ConnectionError("nobody there")


class Interrupted(SFTTrainer):
    def create_client(self, resume_from=None):
        raise KeyboardInterrupt


def made(tmp_path, *, trainer=Unreachable, data=None, callbacks=(), **changes):
    events = Recorder()
    config = settings(tmp_path, **changes)
    data = rows(4) if data is None else data
    return trainer(config, client=object(), train_data=data, event_sinks=[events], callbacks=callbacks), events


def test_what_fails_in_init_is_an_event_and_has_a_report(tmp_path):
    called = []
    trainer, events = made(tmp_path, callbacks=[{"on_failed": called.append}])
    with pytest.raises(TrainerError, match="could not begin: ConnectionError: nobody there") as caught:
        trainer.fit()
    assert (trainer.state, caught.value.stage) == ("failed", "init")
    assert isinstance(caught.value.__cause__, ConnectionError)
    (event,) = events
    assert (event["type"], event["error"], event["error_class"]) == ("failed", "nobody there", "ConnectionError")
    assert (event["name"], event["trainer"], event["config"]["batch_size"]) == ("run", "sft", 4)
    assert read_events(tmp_path / "run" / "events.jsonl") == called == [event]
    assert "nobody there" in (tmp_path / "run" / "report.html").read_text()
    folder = RunFolder(tmp_path, "run")
    folder.take()  # it is let go of
    folder.release()


def test_init_by_hand_tells_as_well_and_may_be_tried_again(tmp_path):
    with made(tmp_path)[0] as trainer:
        trainer.validate()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                trainer.init()
    assert [event["type"] for event in read_events(tmp_path / "run" / "events.jsonl")] == ["failed", "failed"]
    assert trainer.state == "validated"


def test_a_check_that_fit_fails_in_is_an_event(tmp_path):
    trainer, events = made(tmp_path, data=[{"prompt": "x", "odd": 1}])
    with pytest.raises(TrainerError, match="row 0"):
        trainer.fit()
    assert [(event["type"], event["error_class"]) for event in events] == [("failed", "TrainerError")]
    assert read_events(tmp_path / "run" / "events.jsonl") == list(events)
    assert trainer.state == "created"


def test_without_a_configuration_there_is_no_folder_and_sinks_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events = Recorder()
    with pytest.raises(ConfigError):
        SFTTrainer(train_data=[], event_sinks=[events]).fit()
    assert [event["type"] for event in events] == ["failed"]
    assert list(tmp_path.iterdir()) == []


def test_before_any_check_nothing_has_begun(tmp_path):
    with pytest.raises(ZeroDivisionError), made(tmp_path)[0]:
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_of_init_is_a_cancellation(tmp_path):
    trainer, events = made(tmp_path, trainer=Interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert [(event["type"], event["reason"]) for event in events] == [("cancelled", "interrupted from the keyboard")]
    assert trainer.state == "cancelled"


def test_attempts_that_never_began_do_not_pile_up_and_leave_a_run_as_it_was(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    begun = {"seq": 7, "type": "started", "run": "run-1", "name": "run"}
    (folder / "events.jsonl").write_text(json.dumps(begun) + "\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    for _ in range(3):
        with pytest.raises(TrainerError):
            made(tmp_path)[0].fit()
    assert [event["seq"] for event in read_events(folder / "events.jsonl")] == [1, 2, 3]
    assert [path.name for path in (folder / "earlier").iterdir()] == ["1"]
    assert read_events(folder / "earlier" / "1" / "events.jsonl") == [begun]
    assert (folder / "earlier" / "1" / "metrics.jsonl").exists()


def test_in_a_folder_that_is_anothers_nothing_is_written(tmp_path):
    other = RunFolder(tmp_path, "run")
    other.take()
    trainer, events = made(tmp_path)
    with pytest.raises(TrainerError, match="another process trains"):
        trainer.fit()
    assert [event["type"] for event in events] == ["failed"]
    assert [path.name for path in other.path.iterdir()] == ["lock"]
    other.release()


def test_rows_are_read_before_a_server_is_asked(tmp_path):
    """Data that are not there cost no trainer."""
    trainer = Unreachable(settings(tmp_path, dataset=str(tmp_path / "none.jsonl")), client=object())
    with pytest.raises(TrainerError, match=r"none\.jsonl: no such file") as caught:
        trainer.fit()
    assert isinstance(caught.value.__cause__, DataError)
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"odd": 1}\n')
    trainer = Unreachable(settings(tmp_path, dataset=str(tmp_path / "odd.jsonl")), client=object())
    with pytest.raises(TrainerError, match="row 1 of source 0: no known form"):
        trainer.fit()
