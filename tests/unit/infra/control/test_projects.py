"""Projects and their quotas, also when many ask at once."""

import asyncio
import collections

LORA = {"rank": 4, "train_mlp": True}
RUN = {"base_model": "fake/one", "lora": LORA}


async def test_a_project_is_what_an_operator_made_it_until_it_is_deleted(here):
    made = await here.call("POST", "/v1/projects", {"project": "alpha", "quotas": {"max_runs": 3}}, status=201)
    assert made == await here.call("GET", "/v1/projects/alpha")
    assert made["quotas"] == {"max_runs": "3"}
    changed = await here.call("PUT", "/v1/projects/alpha", {"quotas": {"max_sessions": 0}})
    assert changed["quotas"] == {"max_sessions": "0"}
    assert (await here.call("POST", "/v1/projects", {"project": "alpha"}, status=409))["field"] == "project"
    alpha = await here.as_project("alpha")
    await here.call("DELETE", "/v1/projects/alpha")
    for method in ("GET", "PUT", "DELETE"):
        assert (await here.call(method, "/v1/projects/alpha", status=404))["field"] == "project"
    assert "not given again" in (await here.call("POST", "/v1/projects", {"project": "alpha"}, status=409))["message"]
    await here.call("POST", "/v1/sessions", {"project": "alpha"}, status=404)
    assert "revoked" in (await alpha.call("GET", "/v1/sessions", status=401))["message"]


async def test_a_project_with_something_that_lives_stays(here):
    session = await here.call("POST", "/v1/sessions", {"project": "alpha"})
    run = await here.call("POST", f"/v1/sessions/{session['session_id']}/runs", RUN)
    assert run["project"] == "alpha"
    error = await here.call("DELETE", "/v1/projects/alpha", status=409)
    assert "1 open sessions, 1 runs" in error["message"]
    await here.call("DELETE", f"/v1/sessions/{session['session_id']}")
    assert "still has 1 runs" in (await here.call("DELETE", "/v1/projects/alpha", status=409))["message"]
    assert (await here.call("GET", "/v1/projects/alpha"))["project"] == "alpha"


async def test_who_names_no_project_gets_the_default_one_which_stays(here):
    assert (await here.call("POST", "/v1/sessions", {}))["project"] == "default"
    assert [row["project"] for row in (await here.call("GET", "/v1/projects"))["projects"]] == ["default"]
    await here.call("DELETE", "/v1/projects/default", status=409)


async def test_a_projects_key_decides_the_project(here):
    alpha = await here.as_project("alpha")
    await here.call("POST", "/v1/projects", {"project": "beta"})
    for named in ({}, {"project": "alpha"}):
        assert (await alpha.call("POST", "/v1/sessions", named))["project"] == "alpha"
    others = [await alpha.call("POST", "/v1/sessions", {"project": name}, status=404) for name in ("beta", "none")]
    assert [error["field"] for error in others] == ["project", "project"]
    assert others[0]["message"].replace("beta", "none") == others[1]["message"]
    assert [row["project"] for row in (await alpha.call("GET", "/v1/projects"))["projects"]] == ["alpha"]
    await alpha.call("PUT", "/v1/projects/alpha", {"quotas": {}}, status=403)
    await alpha.call("DELETE", "/v1/projects/alpha", status=403)


async def test_nonsense_is_refused_by_field(here):
    for quotas, field in (
        ({"max_runs": -1}, "quotas.max_runs"),
        ({"max_runs": "x"}, "quotas.max_runs"),
        ({"max_gpus": 1}, "quotas"),
    ):
        error = await here.call("POST", "/v1/projects", {"project": "alpha", "quotas": quotas}, status=400)
        assert error["field"] == field
    for name in ("", "a/b", "..", "a b", "x" * 200):
        assert (await here.call("POST", "/v1/projects", {"project": name}, status=400))["field"] == "project"
    assert (await here.call("GET", "/v1/projects/a%00b", status=404))["field"] == "project"


async def test_clients_that_ask_at_once_stay_within_the_quotas(here):
    limits = {"max_sessions": 3, "max_runs": 2, "max_samplers": 1}
    await here.call("POST", "/v1/projects", {"project": "alpha", "quotas": limits})
    alpha = await here.as_project("alpha")
    await expect(alpha, ["/v1/sessions"], {}, created=3, quota="max_sessions")
    sessions = [f"/v1/sessions/{row['session_id']}" for row in (await alpha.call("GET", "/v1/sessions"))["sessions"]]
    await expect(alpha, [f"{path}/runs" for path in sessions], RUN, created=2, quota="max_runs")
    model = {"base_model": "fake/one"}
    await expect(alpha, [f"{path}/samplers" for path in sessions], model, created=1, quota="max_samplers")
    await alpha.call("DELETE", sessions[0])
    await alpha.call("POST", "/v1/sessions", {})


async def expect(caller, paths, body, *, created, quota):
    answers = await asyncio.gather(*(caller.send("POST", paths[i % len(paths)], body) for i in range(12)))
    counted = collections.Counter(answer.status_code for answer in answers)
    assert counted[403] == 12 - created, counted
    error = next(answer.json() for answer in answers if answer.status_code == 403)
    assert (error["error_class"], error["field"]) == ("QuotaExceededError", f"quotas.{quota}")
    assert f"{created} " in error["message"]
    assert f"may have {created}" in error["message"]


async def test_replicas_are_counted_by_run_and_by_sampler(here):
    await here.call("POST", "/v1/projects", {"project": "alpha", "quotas": {"max_sampler_replicas": 2}})
    session = await here.call("POST", "/v1/sessions", {"project": "alpha"})
    path = f"/v1/sessions/{session['session_id']}"
    for body in ({**RUN, "sampler_replicas": 3}, {"base_model": "fake/one", "replicas": 3}):
        kind = "runs" if "lora" in body else "samplers"
        error = await here.call("POST", f"{path}/{kind}", body, status=403)
        assert error["field"] == "quotas.max_sampler_replicas"
        assert "3 sampler replicas" in error["message"]
    await here.call("POST", f"{path}/runs", {**RUN, "sampler_replicas": 2})
