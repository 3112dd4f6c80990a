"""`python -m farstep_infra up`: what it says, what it leaves behind, and what it refuses."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import stat
import time

import httpx
import psutil
import pytest

from farstep_proto import paths

LORA = {"rank": 4, "train_mlp": True}

pytestmark = pytest.mark.system


def test_it_tells_how_to_connect_and_takes_that_back(start):
    up = start()
    local = up.home / "local.json"
    assert json.loads(local.read_text()) == {"base_url": up.url, "api_key": up.key, "pid": up.process.pid}
    for secret in (local, up.home / "api_key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert up.announcement["home"] == str(up.home)
    assert httpx.get(up.url + paths.HEALTH).status_code == 200
    trainer = up.asked(up.announcement["trainer_url"])
    assert trainer["model"] == "fake/one"
    assert up.asked(up.announcement["sampler_url"])["feed"] == f"127.0.0.1:{trainer['feed_port']}"
    family = up.family()
    assert len(family) == 2
    assert up.stop() == 0
    assert not local.exists()
    assert not any(process.is_running() for process in family)
    assert start().key == up.key, "a key outlives a restart"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_every_child_though_a_client_waits(start, how):
    up = start()
    run = up.call("POST", f"/v1/sessions/{up.session()}/runs", {"base_model": "fake/hangs", "lora": LORA})
    with httpx.Client(headers={"Authorization": f"Bearer {up.key}"}) as client, socket.socket() as waiting:
        host, port = up.url.removeprefix("http://").split(":")
        waiting.connect((host, int(port)))
        request = (
            f"GET /v1/runs/{run['run_id']}?wait_s=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {up.key}\r\n\r\n"
        )
        waiting.sendall(request.encode())
        assert client.get(up.url + paths.STATUS).status_code == 200
        up.wait_until(lambda: len(up.family()) == 3)
        family = up.family()
        began = time.monotonic()
        assert up.stop(how) == 0
        assert b'"provisioning"' in waiting.recv(1 << 16)
    assert time.monotonic() - began < 8
    assert not any(process.is_running() for process in family)


def test_ctrl_c_twice_leaves_nothing_either(start):
    up = start()
    family = up.family()
    up.process.send_signal(signal.SIGINT)
    up.stop()
    up.wait_until(lambda: not any(process.is_running() for process in family))
    assert not (up.home / "local.json").exists()


def test_kill_minus_nine_leaves_no_child(start):
    up = start("--replicas=2")
    family = up.family()
    assert len(family) == 4  # trainer, two replicas, router
    up.process.kill()
    up.process.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
    assert (up.home / "local.json").exists()
    again = start()  # its lock and its stale local.json are in nobody's way
    assert json.loads((up.home / "local.json").read_text())["pid"] == again.process.pid


def test_it_ends_with_its_parent(start):
    up = start("--exit-with-parent")
    family = up.family()
    up.process.stdin.close()
    assert up.process.wait(timeout=20) == 0
    assert not any(process.is_running() for process in family)


def test_a_taken_port_is_named(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ChildProcessError, match=rf"exit code 1: .*127\.0\.0\.1:{port}.*--port"):
            start(f"--port={port}")


def test_two_on_one_home_are_refused(start):
    up = start()
    with pytest.raises(ChildProcessError, match=rf"running in .* already at {up.url}.*--home"):
        start()
    assert json.loads((up.home / "local.json").read_text())["pid"] == up.process.pid


def test_a_local_json_of_another_is_left_alone(start):
    up = start()
    other = {"base_url": "http://127.0.0.1:1", "api_key": "other", "pid": os.getpid()}
    (up.home / "local.json").write_text(json.dumps(other))
    up.stop()
    assert json.loads((up.home / "local.json").read_text()) == other


def test_a_model_that_does_not_load_ends_it_with_the_reason(start, tmp_path):
    with pytest.raises(ChildProcessError) as caught:
        start("--model=fake/fails")
    assert "exit code 1" in str(caught.value)
    assert "there is no model fake/fails" in str(caught.value), "the last words of the trainer"
    assert "exit code 3" in str(caught.value)
    assert not (tmp_path / "home" / "local.json").exists()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--model=/nowhere/at all", "--model"),
        ("--served-name=a=no model", "--served-name"),
        ("--replicas=0", "--replicas"),
        ("--host=0.0.0.0", "--host"),
    ],
)
def test_nonsense_is_refused_by_name(start, argument, said):
    with pytest.raises(ChildProcessError, match=said):
        start(argument)


def test_every_process_listens_on_the_address_that_was_given(start):
    up = start("--host=127.0.0.2")
    for url in (up.url, up.announcement["trainer_url"], up.announcement["sampler_url"]):
        assert url.startswith("http://127.0.0.2:")
        assert httpx.get(url + paths.HEALTH).status_code == 200


def test_the_key_of_the_environment_wins_and_is_on_no_command_line(start):
    up = start(FARSTEP_API_KEY="fsk-mine")
    assert up.key == "fsk-mine"
    assert not (up.home / "api_key").exists()
    for process in (psutil.Process(up.process.pid), *up.family()):
        assert "fsk-mine" not in " ".join(process.cmdline())
    assert up.processes("trainer")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_everything_is_there_again_after_a_restart_at_the_same_addresses(start, how):
    up = start("--replicas=2")
    session_id = up.session(project="p", user_metadata={"who": "me"})
    run = up.run(session_id, name="first")
    other = up.run(session_id, base_model="fake/other")
    sampler = up.call("POST", f"/v1/sessions/{session_id}/samplers", {"base_model": "fake/one"})
    sampler = up.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30")
    assert {thing["state"] for thing in (run, other, sampler)} == {"ready"}
    family = up.family()
    up.stop(how)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    again = start("--replicas=2")
    assert (again.url, again.key) == (up.url, up.key)
    assert again.call("GET", f"/v1/sessions/{session_id}")["user_metadata"] == {"who": "me"}
    assert again.call("GET", f"/v1/runs/{run['run_id']}?wait_s=30") == run
    assert again.call("GET", f"/v1/runs/{other['run_id']}?wait_s=30") == other
    assert again.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30") == sampler
    journals = {up.asked(each["trainer_url"])["journal"] for each in (run, other)}
    assert len(journals) == 2


def test_of_a_run_whose_client_has_gone_the_processes_come_back_when_somebody_asks(start):
    up = start()
    session_id = up.session()
    run = up.run(session_id, base_model="fake/later")
    up.call("DELETE", f"/v1/sessions/{session_id}")
    up.stop()
    again = start()
    assert len(again.family()) == 2
    assert again.call("GET", f"/v1/runs/{run['run_id']}")["state"] == "inactive"
    assert len(again.family()) == 2, "to look is not to need"
    assert again.call("GET", f"/v1/runs/{run['run_id']}?wait_s=30") == run
    assert len(again.family()) == 4


def test_a_home_of_an_older_version_says_what_became_of_its_runs(start, tmp_path):
    up = start()
    run = up.run(up.session(), name="old")
    up.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "home" / "control.db")) as db:
        db.execute("UPDATE runs SET stack_id = NULL")
        db.commit()
    told = start().call("GET", f"/v1/runs/{run['run_id']}?wait_s=5")
    assert told["state"] == "failed"
    assert "checkpoints are kept" in told["message"]
    assert "trainer_url" not in told


def test_a_free_port_that_was_chosen_is_kept_unless_another_has_taken_it(start):
    first = start()
    first.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(first.url.rpartition(":")[2])))
        taken.listen()
        second = start()
        assert second.url != first.url
        second.stop()
    assert start().url == second.url


def test_flags_are_passed_on_to_those_who_know_them(start, tmp_path):
    uri = f"file://{tmp_path}/sync"
    up = start(
        f"--weight-sync-uri={uri}", "--custom-losses", "--tool-call-parser=hermes", f"--journal-dir={tmp_path}/j"
    )
    trainer, sampler = (up.asked(up.announcement[f"{which}_url"]) for which in ("trainer", "sampler"))
    assert trainer["weight_sync_uri"] == uri
    assert trainer["custom_losses"] is True
    assert trainer["journal"].startswith(f"{tmp_path}/j/stack-")
    assert sampler["tool_call_parser"] == "hermes"


def test_a_model_is_found_by_every_name_that_it_is_served_by(start):
    up = start("--served-name=Qwen/Qwen3-8B", "--served-model-name=a b", "--served-name=judge=fake/two")
    models = {model["model_name"]: model for model in up.call("GET", "/v1/capabilities")["supported_models"]}
    assert [(name, model.get("warm", False)) for name, model in models.items()] == [
        ("fake/one", True), ("Qwen/Qwen3-8B", True), ("a b", True), ("judge", False),
    ]  # fmt: skip
    assert models["a b"]["max_context_length"] == 512
    assert up.asked(up.announcement["sampler_url"])["served_name"] == ["Qwen/Qwen3-8B", "a b"]
    session = up.session()
    for name in ("a b", "Qwen/Qwen3-8B", "fake/one"):
        run = up.run(session, base_model=name)
        assert (run["base_model"], run["model"]) == (name, "fake/one")
        assert run["trainer_url"] == up.announcement["trainer_url"]
    other = up.run(session, base_model="judge")
    assert (other["base_model"], other["model"]) == ("judge", "fake/two")
    assert up.asked(other["sampler_url"])["served_name"] == ["judge"]
    sampler = up.call("POST", f"/v1/sessions/{session}/samplers", {"base_model": "a b"})
    sampler = up.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30")
    assert sampler["base_model"] == "a b"
    assert up.asked(sampler["sampler_url"])["model"] == "fake/one"
    refused = up.call("POST", f"/v1/sessions/{session}/runs", {"base_model": "no model", "lora": LORA}, status=400)
    assert refused["field"] == "base_model"
