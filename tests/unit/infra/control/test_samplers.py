"""Fresh samplers over HTTP: theirs alone, and gone with their session."""

from pathlib import Path

import psutil
import pytest

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.names import CheckpointPath

CHECKPOINT = CheckpointPath("run:s", "sampler_weights", "v1")


@pytest.fixture(scope="module")
def model_path(up):
    CheckpointStore(Path(up.home) / "store").write(CHECKPOINT, {"f": b"x"}, {"base_model": "fake/one"})
    return str(CHECKPOINT)


def provision(up, session_id, **request):
    sampler = up.call("POST", f"/v1/sessions/{session_id}/samplers", request)
    assert sampler["state"] == "provisioning"
    return up.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30")


def test_a_fresh_sampler_serves_a_base_model_and_ends_with_its_session(up):
    session_id = up.session()
    sampler = provision(up, session_id, base_model="fake/one")
    assert sampler["state"] == "ready"
    assert sampler["sampler_url"] != up.announcement["sampler_url"]
    assert up.asked(sampler["sampler_url"])["feed"] == ""
    pids = {process["url"]: process["pid"] for process in up.processes("sampler")}
    up.call("DELETE", f"/v1/sessions/{session_id}")
    assert not psutil.pid_exists(pids[sampler["sampler_url"]])
    assert sampler["sampler_url"] not in {process["url"] for process in up.processes()}
    up.call("GET", f"/v1/samplers/{sampler['sampler_id']}", status=404)
    assert psutil.pid_exists(pids[up.announcement["sampler_url"]]), "the paired one stays"


def test_the_base_model_comes_from_the_checkpoint(up, model_path):
    session_id = up.session()
    sampler = provision(up, session_id, model_path=model_path, replicas=2)
    assert sampler["base_model"] == "fake/one"
    replicas = up.asked(sampler["sampler_url"])["replica"]
    assert len(replicas) == 2
    assert {up.asked(url)["model_path"] for url in replicas} == {model_path}
    assert {up.asked(url)["store"] for url in replicas} == {str(up.home / "store")}
    up.call("DELETE", f"/v1/sessions/{session_id}")
    assert not set(replicas) & {process["url"] for process in up.processes()}


def test_deleting_the_session_ends_one_that_is_not_ready_yet(up):
    session_id = up.session()
    sampler = up.call("POST", f"/v1/sessions/{session_id}/samplers", {"base_model": "fake/hangs"})

    def hanging():
        return [process for process in up.processes("sampler") if process["base_model"] == "fake/hangs"]

    up.wait_until(lambda: len(hanging()) == 1)
    (listed,) = hanging()
    assert listed["state"] == "starting"
    up.call("DELETE", f"/v1/sessions/{session_id}")
    assert not psutil.pid_exists(listed["pid"])
    up.call("GET", f"/v1/samplers/{sampler['sampler_id']}", status=404)


def test_failure_is_told_and_death_is_mended(up):
    session_id = up.session()
    failed = provision(up, session_id, base_model="fake/fails")
    assert failed["state"] == "failed"
    assert "there is no model fake/fails" in failed["message"]
    sampler = provision(up, session_id, base_model="fake/one")
    up.kill_server(sampler["sampler_url"])
    up.wait_until(lambda: up.process_at(sampler["sampler_url"]).get("num_restarts") == 1)
    again = up.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30")
    assert {key: again.get(key) for key in sampler} == sampler


@pytest.mark.parametrize(
    ("wrong", "status", "field"),
    [
        ({}, 400, "base_model"),
        ({"base_model": "-x"}, 400, "base_model"),
        ({"model_path": "somewhere"}, 400, "model_path"),
        ({"model_path": "bt://loops:run:s/weights/v1"}, 400, "model_path"),
        ({"model_path": "bt://loops:run:s/sampler_weights/none"}, 404, "path"),
        ({"model_path": str(CHECKPOINT), "base_model": "fake/two"}, 400, "base_model"),
        ({"base_model": "fake/one", "replicas": 65}, 400, "replicas"),
    ],
)
def test_nonsense_is_refused_by_field(up, model_path, wrong, status, field):
    error = up.call("POST", f"/v1/sessions/{up.session()}/samplers", wrong, status=status)
    assert error["field"] == field


def test_only_an_open_session_gets_one(up):
    up.call("POST", "/v1/sessions/none/samplers", {"base_model": "fake/one"}, status=404)
