"""Events: numbered, JSON, ended once; callbacks that get them."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from farstep.trainers import Callbacks, TrainerError
from farstep.trainers.callbacks import CallbackList
from farstep.trainers.events import EventFile, EventLog, plain, read_events

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_events_are_numbered_json_objects():
    seen = []
    log = EventLog([seen.append], run="run_1", last_seq=4, clock=lambda: NOON)
    log.emit("log", step=1, loss=np.float32(0.5), kind="any name will do")
    assert seen == [
        {"seq": 5, "type": "log", "time": "2026-01-31T12:00:00.000Z", "run": "run_1", "step": 1, "loss": 0.5,
         "kind": "any name will do"}
    ]  # fmt: skip


def test_what_json_cannot_hold_is_named():
    found = plain({"loss": float("nan"), "each": [1.0, float("inf")], "deep": {"x": float("-inf")}, "path": NOON})
    assert found["not_finite"] == ["loss", "each[1]", "deep.x"]
    assert found["each"] == [1.0, None]
    json.dumps(found, allow_nan=False)


def test_a_run_ends_once():
    log = EventLog()
    log.emit("completed")
    assert log.has_ended
    with pytest.raises(AssertionError):
        log.emit("failed")


def test_a_sink_that_fails_does_not_stop_the_run(caplog):
    seen = []

    def full(event):
        raise OSError("no space left on device")

    log = EventLog([full, seen.append])
    for _ in range(3):
        log.emit("log")
    assert len(seen) == 3
    assert caplog.text.count("no space left on device") == 1


def test_a_file_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog([EventFile(path)])
    log.emit("started")
    log.emit("log", step=1)
    with path.open("a") as file:
        file.write('{"seq": 3, "type": "lo')
    again = EventFile(path)
    assert again.last_seq == 2
    EventLog([again], last_seq=again.last_seq).emit("completed")
    assert [event["seq"] for event in read_events(path)] == [1, 2, 3]


def test_callbacks_get_their_event_and_what_they_ask_for():
    said = []

    class Watch(Callbacks):
        def on_log(self, event):
            said.append(event["step"])

        async def on_checkpoint(self, event, infer):
            said.append(infer)

    callbacks = CallbackList([Watch(), {"on_checkpoint": lambda event: said.append("plain")}])
    callbacks.call({"type": "log", "step": 1})
    callbacks.call({"type": "checkpoint"}, infer="infer")
    callbacks.call({"type": "eval"})
    assert said == [1, "infer", "plain"]
    assert callbacks.wants("checkpoint")
    assert not callbacks.wants("eval")


async def test_an_async_callback_is_awaited_where_a_loop_runs_already():
    said = []

    async def on_log(event):
        said.append(event["type"])

    CallbackList([{"on_log": on_log}]).call({"type": "log"})
    assert said == ["log"]


@pytest.mark.parametrize("given", [{"on_logg": print}, {"on_log": 3}, object(), {}])
def test_a_callback_that_would_never_be_called_is_refused(given):
    with pytest.raises(TrainerError, match="callbacks: "):
        CallbackList([given])
