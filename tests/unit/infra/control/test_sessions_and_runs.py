"""Sessions and runs over HTTP: provisioning, sharing, failure, and what is refused."""

import os
import signal

import pytest

LORA = {"rank": 4, "train_mlp": True}


def test_a_session_is_what_was_asked_for_until_it_is_deleted(up):
    session_id = up.session(project="p", user_metadata={"a": "b"})
    session = up.call("GET", f"/v1/sessions/{session_id}")
    assert (session["project"], session["user_metadata"]) == ("p", {"a": "b"})
    before = up.call("GET", "/v1/status")["num_sessions"]
    for _ in range(2):  # the first answer may have been lost
        up.call("DELETE", f"/v1/sessions/{session_id}")
    closed = up.call("GET", f"/v1/sessions/{session_id}")
    ended = closed["closed_at"]
    assert {**session, "closed_at": ended, "last_seen_at": ended} == closed
    for method in ("GET", "DELETE"):
        assert up.call(method, "/v1/sessions/session-none", status=404)["field"] == "session_id"
    up.call("POST", f"/v1/sessions/{session_id}/heartbeat", status=404)
    up.call("POST", f"/v1/sessions/{session_id}/runs", {"base_model": "fake/one", "lora": LORA}, status=404)
    assert up.call("GET", "/v1/status").get("num_sessions", 0) == before - 1


def test_runs_on_one_base_model_share_trainer_and_sampler(up):
    first = up.run(up.session(), name="a", seed=7, user_metadata={"k": "v"}, max_seq_len=128)
    second = up.run(up.session())
    assert first["state"] == "ready"
    assert (first["name"], first["seed"], first["user_metadata"], first["max_seq_len"]) == ("a", "7", {"k": "v"}, 128)
    assert first["lora"] == {"rank": 4, "alpha": 4.0, "train_attn": True, "train_mlp": True}, "defaults filled in"
    assert first["run_id"] != second["run_id"]
    for url in ("trainer_url", "sampler_url"):
        assert first[url] == second[url] == up.announcement[url]
    listed = {run["run_id"]: run for run in up.call("GET", "/v1/runs")["runs"]}
    assert listed[first["run_id"]] == first


def test_a_deleted_run_is_gone_from_its_trainer_and_stays_listed(up):
    run = up.run(up.session())
    path = f"/v1/runs/{run['run_id']}"
    for _ in range(2):  # the first answer may have been lost
        up.call("DELETE", path)
    assert up.asked(run["trainer_url"])["deleted"] == [run["run_id"]]
    deleted = up.call("GET", path)
    assert deleted["state"] == "deleted"
    assert "trainer_url" not in deleted
    assert {r["run_id"]: r["state"] for r in up.call("GET", "/v1/runs")["runs"]}[run["run_id"]] == "deleted"
    assert up.call("DELETE", "/v1/runs/run-none", status=404)["field"] == "run_id"


def test_a_run_is_deleted_while_its_trainer_is_away_but_not_while_it_is_provisioned(up):
    run = up.run(up.session(), base_model="fake/gone")
    (trainer,) = [process for process in up.processes("trainer") if process["base_model"] == "fake/gone"]
    os.kill(trainer["pid"], signal.SIGSTOP)
    up.kill_process(trainer["pid"])
    up.call("DELETE", f"/v1/runs/{run['run_id']}")
    assert up.call("GET", f"/v1/runs/{run['run_id']}")["state"] == "deleted"
    up.wait_until(lambda: up.says(run["trainer_url"], "deleted", [run["run_id"]]))
    request = {"base_model": "fake/hangs", "lora": LORA}
    hanging = up.call("POST", f"/v1/sessions/{up.session()}/runs", request)
    assert up.call("DELETE", f"/v1/runs/{hanging['run_id']}", status=409)["field"] == "run_id"


def test_another_base_model_gets_processes_of_its_own(up):
    run = up.run(up.session(), base_model="fake/two", with_sampler=False)
    assert "sampler_url" not in run
    assert run["trainer_url"] != up.announcement["trainer_url"]
    assert up.asked(run["trainer_url"])["model"] == "fake/two"
    again = up.run(up.session(), base_model="fake/two")
    assert again["trainer_url"] == run["trainer_url"]
    assert up.asked(again["sampler_url"])["model"] == "fake/two"
    warm = [model["model_name"] for model in up.call("GET", "/v1/capabilities")["supported_models"]]
    assert {"fake/one", "fake/two"} <= set(warm)


def test_many_at_once_start_one_trainer(up):
    session_id = up.session()
    request = {"base_model": "fake/crowded", "lora": LORA, "with_sampler": True}
    runs = [up.call("POST", f"/v1/sessions/{session_id}/runs", request) for _ in range(5)]
    settled = [up.call("GET", f"/v1/runs/{run['run_id']}?wait_s=30") for run in runs]
    assert {run["state"] for run in settled} == {"ready"}
    assert len({run["trainer_url"] for run in settled}) == 1
    assert len([process for process in up.processes("trainer") if process["base_model"] == "fake/crowded"]) == 1


def test_more_sampler_replicas_come_with_a_router_that_knows_all(up):
    one = up.run(up.session(), base_model="fake/grows")
    three = up.run(up.session(), base_model="fake/grows", sampler_replicas=3)
    assert three["state"] == "ready", three
    assert three["trainer_url"] == one["trainer_url"]
    replicas = up.asked(three["sampler_url"])["replica"]
    assert len(replicas) == 3
    assert one["sampler_url"] in replicas, "the one that was there goes on serving"
    feed_port = up.asked(one["trainer_url"])["feed_port"]
    assert {up.asked(url)["feed"] for url in replicas} == {f"127.0.0.1:{feed_port}"}
    assert up.run(up.session(), base_model="fake/grows")["sampler_url"] == three["sampler_url"]


def test_a_running_fleet_grows_and_mends_behind_the_same_router(up):
    two = up.run(up.session(), base_model="fake/scales", sampler_replicas=2)
    four = up.run(up.session(), base_model="fake/scales", sampler_replicas=4)
    assert four["sampler_url"] == two["sampler_url"], "nobody has to be told of a new address"
    replicas = up.asked(four["sampler_url"])["replica"]
    assert len(set(replicas)) == 4
    up.kill_server(replicas[0])
    up.wait_until(lambda: up.process_at(replicas[0]).get("num_restarts") == 1)
    up.wait_until(lambda: up.process_at(replicas[0])["state"] == "running")
    assert up.asked(four["sampler_url"])["replica"] == replicas, "it is back at its address, and still a member"
    router = up.process_at(four["sampler_url"])
    up.kill_process(router["pid"])
    up.wait_until(lambda: up.process_at(router["url"]).get("num_restarts") == 1)
    up.wait_until(lambda: up.process_at(router["url"])["state"] == "running")
    assert set(up.asked(router["url"])["replica"]) == set(replicas), "also those that joined after its first start"


def test_failed_provisioning_says_why_and_can_be_tried_again(up):
    for _ in range(2):
        run = up.run(up.session(), base_model="fake/fails")
        assert run["state"] == "failed"
        assert "exit code 3" in run["message"]
        assert "there is no model fake/fails" in run["message"]
    dead = [process for process in up.processes() if process.get("base_model") == "fake/fails"]
    assert {process["state"] for process in dead} == {"failed"}
    log = up.text("GET", f"/v1/processes/{dead[0]['name']}/log")
    assert "there is no model fake/fails" in log


@pytest.mark.parametrize("which", ["trainer", "sampler"])
def test_what_dies_comes_back_by_itself_at_the_same_address(up, which):
    run = up.run(up.session(), base_model=f"fake/mortal-{which}")
    url = run[f"{which}_url"]
    before = up.process_at(url)
    up.kill_server(url)
    up.wait_until(lambda: up.process_at(url).get("num_restarts") == 1)
    again = up.call("GET", f"/v1/runs/{run['run_id']}?wait_s=30")
    assert {key: again.get(key) for key in run} == run
    after = up.process_at(url)
    assert after["pid"] != before["pid"]
    assert (after["name"], after["log_path"]) == (before["name"], before["log_path"])
    with open(after["log_path"]) as log:
        assert log.read().count("says something before it is ready") == 2
    assert up.run(up.session(), base_model=f"fake/mortal-{which}")[f"{which}_url"] == url


def test_a_session_takes_over_from_an_earlier_one_also_a_closed_one(up):
    earlier = up.session()
    run = up.run(earlier)
    up.call("DELETE", f"/v1/sessions/{earlier}")
    later = up.session(reuse_from_session_id=earlier)
    assert up.run(later)["trainer_url"] == run["trainer_url"]
    error = up.call("POST", "/v1/sessions", {"reuse_from_session_id": "session-none"}, status=404)
    assert error["field"] == "reuse_from_session_id"


def test_processes_share_the_machine_politely(up):
    env = up.asked(up.announcement["trainer_url"])["env"]
    assert env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(env["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"base_model": ""}, "base_model"),
        ({"base_model": "--help"}, "base_model"),
        ({"base_model": "../../etc"}, "base_model"),
        ({"lora": {"rank": 0, "train_mlp": True}}, "lora.rank"),
        ({"lora": {**LORA, "alpha": -1}}, "lora.alpha"),
        ({"lora": {**LORA, "alpha": "NaN"}}, "lora.alpha"),
        ({"lora": {**LORA, "dropout": 1}}, "lora.dropout"),
        ({"lora": {"rank": 4, "train_attn": False, "train_mlp": False}}, "lora"),
        ({"max_seq_len": -1}, "max_seq_len"),
        ({"replicas": 65}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 64}, "replicas"),  # more than this machine has processors
        ({"sampler_replicas": 1000}, "sampler_replicas"),
        ({"sampler_replicas": -1}, "sampler_replicas"),
        ({"name": "x" * 1000}, "name"),
        ({"user_metadata": {"k": "v" * 5000}}, "user_metadata.k"),
        ({"no_such_field": 1}, "body"),
    ],
)
def test_nonsense_is_refused_by_field(up, wrong, field):
    request = {"base_model": "fake/one", "lora": LORA, **wrong}
    error = up.call("POST", f"/v1/sessions/{up.session()}/runs", request, status=400)
    assert error["field"] == field
    assert error["error_class"] == "ValidationError"


def test_unknown_ids_and_wrong_keys(up):
    assert up.call("GET", "/v1/runs/run-none", status=404)["field"] == "run_id"
    assert up.call("GET", "/v1/samplers/none", status=404)["field"] == "sampler_id"
    up.call("POST", "/v1/sessions/none/runs", {"base_model": "fake/one", "lora": LORA}, status=404)
    up.call("GET", "/v1/runs/x?wait_s=soon", status=400)
    key, up.key = up.key, "fsk-wrong"
    try:
        for path in ("/v1/status", "/v1/runs", "/v1/capabilities"):
            assert up.call("GET", path, status=401)["error_class"] == "AuthenticationError"
        assert up.call("GET", "/health") == {}
    finally:
        up.key = key
