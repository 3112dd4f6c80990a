"""Over HTTP: runs that rest and wake, stacks of one's own, and what a full control plane says."""

import contextlib
import threading

import httpx
import pytest

LORA = {"rank": 4, "train_mlp": True}

pytestmark = pytest.mark.system


def look(up, run, *, wait_s=0):
    return up.call("GET", f"/v1/runs/{run['run_id']}" + (f"?wait_s={wait_s}" if wait_s else ""))


def journal_of(up, run):
    """It may rest again between being woken and being asked, where the machine is busy."""
    while True:
        look(up, run, wait_s=30)
        with contextlib.suppress(httpx.HTTPError):
            return up.asked(run["trainer_url"])["journal"]


def deactivate(up, run, **more):
    return up.call("POST", f"/v1/runs/{run['run_id']}/deactivate", **more)


def test_a_deactivated_run_rests_with_its_stack_and_is_back_for_whoever_waits(start):
    up = start()
    session_id = up.session()
    first, second = (up.run(session_id, base_model="fake/two", name=name) for name in ("a", "b"))
    assert deactivate(up, first)["state"] == "inactive"
    assert up.says(second["trainer_url"], "model", "fake/two"), "another run needs the stack"
    assert look(up, second) == second
    assert "trainer_url" not in look(up, first)
    httpx.get(second["trainer_url"] + "/work?n=1", headers={"Authorization": f"Bearer {up.key}"})
    deactivate(up, second)
    assert up.says(second["trainer_url"], "model", "fake/two"), "it has work to do"
    httpx.get(second["trainer_url"] + "/work?n=0", headers={"Authorization": f"Bearer {up.key}"})
    assert deactivate(up, second)["state"] == "inactive"
    assert not up.says(second["trainer_url"], "model", "fake/two")
    listed = up.call("GET", "/v1/runs?state=inactive")["runs"]
    assert {run["run_id"] for run in listed} == {first["run_id"], second["run_id"]}
    assert look(up, second, wait_s=30) == second
    assert look(up, first)["state"] == "inactive"
    assert look(up, first, wait_s=30) == first
    default = up.run(session_id)
    assert deactivate(up, default)["state"] == "inactive"
    assert up.says(default["trainer_url"], "model", "fake/one"), "the default model never rests"
    up.call("DELETE", f"/v1/runs/{first['run_id']}")
    assert deactivate(up, first, status=409)["field"] == "run_id"
    up.call("POST", "/v1/runs/run-none/deactivate", status=404)


def test_several_that_train_together_have_a_stack_of_their_own_that_a_later_session_takes_over(start):
    up = start()
    earlier = up.session()
    shared = up.run(earlier)
    own = up.run(earlier, replicas=2)
    assert own["state"] == "ready", own
    assert own["trainer_url"] != shared["trainer_url"]
    assert up.asked(own["trainer_url"])["nproc"] == "2"
    another = up.run(earlier, replicas=2)
    assert another["trainer_url"] not in (own["trainer_url"], shared["trainer_url"])
    later = up.run(up.session(reuse_from_session_id=earlier), replicas=2)
    assert later["trainer_url"] == another["trainer_url"]
    fresh = up.run(up.session(reuse_from_session_id=earlier), replicas=2, base_model="fake/two")
    assert fresh["trainer_url"] not in (own["trainer_url"], another["trainer_url"])
    up.call("DELETE", f"/v1/runs/{own['run_id']}")
    up.wait_until(lambda: own["trainer_url"] not in {process["url"] for process in up.processes()})
    up.call("DELETE", f"/v1/runs/{later['run_id']}")
    assert look(up, another) == another, "who took it over does not take it along"


def test_nobody_used_it_and_it_rests_and_its_journal_is_that_of_before(start):
    up = start("--idle-timeout=3")
    session_id = up.session()
    run = up.run(session_id, base_model="fake/two", with_sampler=False)
    sampler = up.call("POST", f"/v1/sessions/{session_id}/samplers", {"base_model": "fake/one"})
    sampler = up.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30")
    journal = journal_of(up, run)
    up.call("DELETE", f"/v1/sessions/{up.session()}")  # of somebody else
    up.wait_until(lambda: look(up, run)["state"] == "inactive", within_s=60)
    up.wait_until(lambda: up.call("GET", f"/v1/samplers/{sampler['sampler_id']}")["state"] == "inactive", within_s=60)
    up.wait_until(lambda: len(up.family()) == 2)  # the default model's
    assert look(up, run, wait_s=30) == run
    assert journal_of(up, run) == journal
    assert up.call("GET", f"/v1/samplers/{sampler['sampler_id']}?wait_s=30") == sampler


def test_a_full_control_plane_says_so(start):
    up = start("--max-stacks=2")
    run = up.run(up.session(), base_model="fake/two")
    request = {"base_model": "fake/three", "lora": LORA}
    error = up.call("POST", f"/v1/sessions/{up.session()}/runs", request, status=429)
    assert "--max-stacks" in error["hint"]
    up.call("POST", f"/v1/sessions/{up.session()}/samplers", {"base_model": "fake/three"}, status=429)
    assert up.run(up.session(), base_model="fake/two")["trainer_url"] == run["trainer_url"]


def test_logs_are_read_and_followed_by_operators_alone(start):
    up = start()
    run = up.run(up.session())
    name = up.process_at(run["trainer_url"])["name"]
    where = f"/v1/processes/{name}/log"
    assert up.text("GET", where + "?tail=1") == "trainer says something before it is ready\n"
    for wrong in ("tail=x", "tail=-1", "tail=9999999999", "follow=perhaps"):
        assert up.call("GET", f"{where}?{wrong}", status=400)["field"] == wrong.split("=")[0]
    assert up.call("GET", "/v1/processes/trainer-99/log", status=404)["field"] == "name"
    up.call("GET", "/v1/processes/..%2fcontrol/log", status=404)
    heard, lines = threading.Event(), []

    def follow():
        key = {"Authorization": f"Bearer {up.key}"}
        with httpx.stream("GET", up.url + where + "?tail=0&follow=1", headers=key, timeout=60) as response:
            heard.set()
            for line in response.iter_lines():
                lines.append(line)

    reader = threading.Thread(target=follow)
    reader.start()
    assert heard.wait(20)
    up.kill_server(run["trainer_url"])
    up.wait_until(lambda: lines[-1:] == ["trainer says something before it is ready"])
    assert lines[0] == "trainer was told to die"
    up.stop()  # which does not wait for who follows
    reader.join(timeout=20)
    assert not reader.is_alive()
