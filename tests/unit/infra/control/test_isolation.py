"""Two projects: whatever one has, the other meets exactly what it would meet if that had never been.

The cases come from the app's own route table: a route with a new kind of id fails here until its id is known.
"""

import re
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from starlette.routing import Route

from farstep_infra.gateway import capabilities, traces
from farstep_proto import paths
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import control_pb2

RUN = {"base_model": "fake/one", "lora": {"rank": 4, "train_mlp": True}}
BODIES = {  # what is asked for correctly; elsewhere an empty message is
    paths.SESSION_RUNS: RUN,
    paths.SESSION_SAMPLERS: {"base_model": "fake/one"},
    paths.CHECKPOINT_TTL: {"ttl_seconds": "60"},
    "/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl": {"ttl_seconds": 3600},
    "/api/v1/sessions/{session_id}/project": {"project_id": "alpha"},
}
OPERATORS_ONLY = {paths.PROCESS_LOG}  # 403 whatever is named
PROVEN_BY_URL = {paths.CHECKPOINT_FILE, traces.FILE}  # these need no key, but a signature
NEVER = {
    "session_id": "session-0000000000000000",
    "run_id": "run-0000000000000000",
    "sampler_id": "sampler-0000000000000000",
    "sampling_session_id": "session-0000000000000000:sample:0",
    "key_id": "key-0000000000000000",
    "project": "gamma",
    "name": "nothing",
    "kind": "sampler_weights",
}


@pytest.fixture
async def alpha(here):
    return await here.as_project("alpha")


@pytest.fixture
async def owned(here):
    """Ids of what beta has, one of every kind."""
    beta = await here.as_project("beta")
    (key,) = (await beta.call("GET", "/v1/keys"))["keys"]
    session_id = (await beta.call("POST", "/v1/sessions", {}))["session_id"]
    run_id = (await beta.call("POST", f"/v1/sessions/{session_id}/runs", RUN))["run_id"]
    sampler = await beta.call("POST", f"/v1/sessions/{session_id}/samplers", {"base_model": "fake/one"})
    samplings = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "fake/one"}
    sampling_session = await beta.call("POST", "/api/v1/create_sampling_session", samplings)
    for kind in ("sampler_weights", "external_weights"):
        here.store.write(CheckpointPath(run_id, kind, "ours"), {"adapter": b"weights"}, {"base_model": "fake/one"})
    usage = control_pb2.Usage(project="beta", run_id=run_id, num_samples=1)
    await here.control.usage.add("server", [usage])
    return {
        "session_id": session_id,
        "run_id": run_id,
        "sampler_id": sampler["sampler_id"],
        "sampling_session_id": sampling_session["sampling_session_id"],
        "key_id": key["key_id"],
        "project": "beta",
        "name": "ours",
        "kind": "sampler_weights",
    }


def routes(app, *, named):
    """Method and path template of all routes that name something, or of those that do not."""
    found = [
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods - {"HEAD"})
        if route.path not in PROVEN_BY_URL and bool(route.param_convertors) is named
    ]
    assert found
    return found


async def test_every_route_hides_every_id_of_the_other(here, alpha, owned):
    for method, template in routes(here.app, named=True):
        body = BODIES.get(template, {} if method in ("POST", "PUT") else None)
        theirs = await alpha.send(method, template.format(**owned), body)
        never = await alpha.send(method, template.format(**NEVER), body)
        where = f"{method} {template}: {theirs.text}"
        assert theirs.status_code == never.status_code == (403 if template in OPERATORS_ONLY else 404), where
        assert without_names(theirs.text, owned) == without_names(never.text, NEVER), where
        assert set(theirs.headers) == set(never.headers)


async def test_what_was_hidden_was_there(here, owned):
    for method, template in routes(here.app, named=True):
        if method == "GET" and template not in OPERATORS_ONLY:
            await here.call("GET", template.format(**owned))


def this_day():
    """As the Tinker wire says it."""
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return "?" + urlencode({"starting_on": day.isoformat(), "ending_before": (day + timedelta(days=1)).isoformat()})


async def test_every_list_leaves_out_what_the_other_has(here, alpha, owned):
    for method, template in routes(here.app, named=False):
        if method != "GET":
            continue
        theirs = await alpha.send("GET", template + (this_day() if template.endswith("/usage/events") else ""))
        assert theirs.status_code in (200, 403)
        for kind in ("session_id", "run_id", "sampler_id", "key_id", "project"):
            assert f'"{owned[kind]}"' not in theirs.text, template


async def test_lists_show_an_operator_everything_and_can_be_narrowed(here, alpha, owned):
    for path in (paths.SESSIONS, paths.RUNS, paths.SAMPLERS, paths.KEYS, paths.USAGE):
        await check_list(here, alpha, path)


async def check_list(here, alpha, path):
    assert '"beta"' in (await here.send("GET", path)).text
    assert (await here.call("GET", f"{path}?project=beta")) != {}
    assert (await here.call("GET", f"{path}?project=delta")) == {}
    answers = [await alpha.call("GET", f"{path}?project={name}", status=404) for name in ("beta", "gamma")]
    assert answers[0]["message"].replace("beta", "gamma") == answers[1]["message"]
    await alpha.call("GET", f"{path}?project=alpha")


async def test_no_body_reaches_what_the_other_has(here, alpha, owned):
    session_id = (await alpha.call("POST", "/v1/sessions", {}))["session_id"]
    path = f"/v1/sessions/{session_id}/samplers"

    def checkpoint(ids):
        return "bt://loops:{run_id}/{kind}/{name}".format(**ids)

    await here.call("POST", path, {"model_path": checkpoint(owned)})  # an operator may
    sampling = {"sampling_session_seq_id": 0}
    sample = {"seq_id": 1, "prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {}}
    for place, body in (
        ("/v1/sessions", lambda ids: {"reuse_from_session_id": ids["session_id"]}),
        ("/v1/sessions", lambda ids: {"project": ids["project"]}),
        (path, lambda ids: {"model_path": checkpoint(ids)}),
        (
            "/api/v1/create_sampling_session",
            lambda ids: {"session_id": ids["session_id"], "base_model": "fake/one", **sampling},
        ),
        (
            "/api/v1/create_sampling_session",
            lambda ids: {"session_id": session_id, "model_path": checkpoint(ids), **sampling},
        ),
        ("/api/v1/join_sampling_session", lambda ids: {"sampling_session_id": ids["sampling_session_id"]}),
        ("/api/v1/asample", lambda ids: {"sampling_session_id": ids["sampling_session_id"], **sample}),
        ("/api/v1/retrieve_future", lambda ids: {"request_id": ids["sampling_session_id"] + ":1"}),
        ("/api/v1/cancel_future", lambda ids: {"request_id": ids["sampling_session_id"] + ":1"}),
    ):
        theirs, never = [await alpha.send("POST", place, body(ids)) for ids in (owned, NEVER)]
        assert theirs.status_code == never.status_code == 404, theirs.text
        assert without_names(theirs.text, owned) == without_names(never.text, NEVER)
    filtered = [await alpha.call("GET", f"/v1/runs?session_id={ids['session_id']}") for ids in (owned, NEVER)]
    assert filtered == [{}, {}]
    used = [await alpha.call("GET", f"/v1/usage?by=run&run_id={ids['run_id']}") for ids in (owned, NEVER)]
    assert used == [{}, {}]


async def test_no_body_of_the_tinker_wire_reaches_what_the_other_has(here, alpha, owned):
    mine = (await alpha.call("POST", "/v1/sessions", {}))["session_id"]

    def path(ids):
        return "tinker://{run_id}/{kind}/{name}".format(**ids)

    for place, body in (
        ("weights_info", lambda ids: {"tinker_path": path(ids)}),
        ("copy_weights", lambda ids: {"source_path": path(ids), "session_id": mine, "model_seq_id": 0}),
        ("copy_weights", lambda ids: {"source_path": path(ids), "destination_project_id": "alpha"}),
        ("create_session", lambda ids: {"project_id": ids["project"]}),
        ("session_heartbeat", lambda ids: {"session_id": ids["session_id"]}),
        ("sessions/search", lambda ids: {"project_ids": [ids["project"]]}),
    ):
        theirs, never = [await alpha.send("POST", f"/api/v1/{place}", body(ids)) for ids in (owned, NEVER)]
        assert theirs.status_code == never.status_code == 404, theirs.text
        assert without_names(theirs.text, owned) == without_names(never.text, NEVER)
    for ids in (owned, NEVER):
        found = await alpha.call("POST", "/api/v1/sessions/search", {"session_id": ids["session_id"]})
        assert found == {"sessions": []}
        for place in ("training_runs", "billing/usage/checkpoints/current"):
            await alpha.call("GET", f"/api/v1/{place}?project_id={ids['project']}", status=404)


async def test_runs_that_only_the_store_knows_are_the_operators(here, alpha):
    path = CheckpointPath("made-elsewhere", "weights", "w")
    here.store.write(path, {"adapter": b"weights"}, {"base_model": "fake/one"})
    assert (await here.call("GET", "/v1/runs/made-elsewhere/checkpoints"))["checkpoints"]
    await here.call("GET", "/v1/checkpoints/made-elsewhere/weights/w")
    await alpha.call("GET", "/v1/runs/made-elsewhere/checkpoints", status=404)
    for method in ("GET", "DELETE"):
        await alpha.call(method, "/v1/checkpoints/made-elsewhere/weights/w", status=404)
    await here.call("GET", "/v1/runs/never-made/checkpoints", status=404)


async def test_without_a_key_there_is_nothing_but_health_and_the_routes_themselves(here):
    for template in (*(path for _, path in routes(here.app, named=False)), paths.RUN, paths.PROJECT):
        here.key = "fsk-guessed"
        status = 200 if template in (paths.HEALTH, paths.OPENAPI, capabilities.HEALTHZ) else 401
        assert (await here.send("GET", template)).status_code == status, template


def without_names(text, names):
    for name in names.values():
        text = text.replace(name, "?")
    return re.sub(r"\s+", " ", text)
