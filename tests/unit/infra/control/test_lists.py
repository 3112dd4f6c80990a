"""Lists: pages that neither skip nor repeat, whatever comes and goes between them; filters; signs of life."""

import asyncio
import base64
import json
import time

import pytest
from sqlalchemy import update

from farstep_infra.control.housekeeping import Housekeeping
from farstep_infra.control.tables import RunRow, SessionRow
from farstep_infra.control.uses import Uses
from farstep_proto.v1 import control_pb2

RUN = {"base_model": "fake/one", "lora": {"rank": 4, "train_mlp": True}}


async def pages(caller, path, *, limit, between=None):
    """All things of a list, page by page."""
    (what,) = {"sessions", "runs", "samplers", "keys", "projects", "usage"} & set(path.split("?")[0].split("/"))
    found, page = [], ""
    while True:
        listed = await caller.call("GET", f"{path}{'&' if '?' in path else '?'}limit={limit}&page={page}")
        assert len(listed.get(what, [])) <= limit
        found += listed.get(what, [])
        page = listed.get("next_page", "")
        if not page:
            return found
        if between is not None:
            await between()


async def make_sessions(here, count, **fields):
    return [(await here.call("POST", "/v1/sessions", fields))["session_id"] for _ in range(count)]


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
async def test_pages_together_are_the_list_in_order(here, limit):
    made = await make_sessions(here, 7)
    async with here.db.transaction() as db:  # some made in the same instant
        at = (await db.get_one(SessionRow, made[2])).created_at
        await db.execute(update(SessionRow).where(SessionRow.session_id.in_(made[2:6])).values(created_at=at))
    found = [session["session_id"] for session in await pages(here, "/v1/sessions", limit=limit)]
    assert found == [*made[:2], *sorted(made[2:6]), made[6]]


async def test_what_comes_between_pages_moves_nothing(here):
    made = await make_sessions(here, 5)
    found = await pages(here, "/v1/sessions", limit=2, between=lambda: here.call("POST", "/v1/sessions", {}))
    assert [session["session_id"] for session in found][:5] == made
    assert len(found) == len({session["session_id"] for session in found})


async def test_every_list_is_paged_and_filtered(here):
    (session_id, closed_id) = await make_sessions(here, 2, project="alpha")
    await make_sessions(here, 1, project="beta")
    for _ in range(3):
        await here.call("POST", f"/v1/sessions/{session_id}/runs", RUN)
        await here.call("POST", f"/v1/sessions/{session_id}/samplers", {"base_model": "fake/one"})
        await here.call("POST", "/v1/keys", {"project": "alpha"})
    await here.call("POST", f"/v1/sessions/{closed_id}/runs", RUN)
    await here.call("DELETE", f"/v1/sessions/{closed_id}")
    usage = [control_pb2.Usage(project="alpha", run_id=f"run-{i}", num_samples=1) for i in range(3)]
    await here.control.usage.add("server", usage)
    for path, count in {
        "/v1/sessions": 3,
        "/v1/sessions?project=alpha": 2,
        "/v1/sessions?project=alpha&state=open": 1,
        "/v1/sessions?state=closed": 1,
        "/v1/runs": 4,
        f"/v1/runs?session_id={session_id}": 3,
        "/v1/runs?state=ready": 0,
        "/v1/runs?state=provisioning": 4,
        "/v1/samplers?state=provisioning": 3,
        "/v1/samplers?state=failed": 0,
        "/v1/keys?state=active&project=alpha": 3,
        "/v1/keys?state=revoked": 0,
        "/v1/projects": 2,
        "/v1/usage": 1,
        "/v1/usage?by=run": 3,
    }.items():
        found = await pages(here, path, limit=2)
        assert len(found) == len({json.dumps(one) for one in found}) == count, path


def token(*place):
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


NONSENSE = [
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("limit=-1", "limit"),
    ("limit=many", "limit"),
    ("limit=%D9%A3", "limit"),
    ("page=nonsense", "page"),
    ("page=%00", "page"),
    (f"page={token('a', 'b')}", "page"),
    (f"page={token(1.5)}", "page"),
    (f"page={token(1.5, 'a', 'b')}", "page"),
    (f"page={token(float('nan'), 'a')}", "page"),
    (f"page={token(float('inf'), 'a')}", "page"),
    (f"page={token(True, 'a')}", "page"),
    (f"page={token(1.5, chr(0))}", "page"),
    ("page=" + base64.urlsafe_b64encode(b"[" * 40_000).decode(), "page"),
    ("state=sleeping", "state"),
    ("project=a%00b", "project"),
]


async def test_nonsense_is_refused_by_field(here):
    for query, field in NONSENSE:
        assert (await here.call("GET", f"/v1/sessions?{query}", status=400))["field"] == field, query


async def test_a_heartbeat_is_noted_now_and_then(here):
    (session_id,) = await make_sessions(here, 1)
    path = f"/v1/sessions/{session_id}"
    first = await here.call("GET", path)
    assert (await here.call("POST", f"{path}/heartbeat"))["last_seen_at"] == first["last_seen_at"], "a moment ago"
    await silent(here, session_id, 40)
    seen = await here.call("POST", f"{path}/heartbeat")
    assert seen["last_seen_at"] > time.time() - 20
    assert await here.call("GET", path) == seen
    await here.call("DELETE", path)
    await here.call("POST", f"{path}/heartbeat", status=404)
    await here.call("POST", "/v1/sessions/session-none/heartbeat", status=404)


async def test_a_heartbeat_is_also_for_the_sessions_of_runs_that_are_used(here):
    resumed_id, mine_id, other_id = await make_sessions(here, 3)
    resumed = await here.call("POST", f"/v1/sessions/{resumed_id}/runs", RUN)
    beta = await here.as_project("beta")
    hidden_id = (await beta.call("POST", "/v1/sessions", {}))["session_id"]
    for session_id in (resumed_id, mine_id, other_id, hidden_id):
        await silent(here, session_id, 120)
    body = {"run_ids": [resumed["run_id"], "run-none"]}
    await beta.call("POST", f"/v1/sessions/{hidden_id}/heartbeat", body)
    assert await seen_lately(here) == {hidden_id}, "another project's runs are no matter of its"
    await here.call("POST", f"/v1/sessions/{mine_id}/heartbeat", body)
    assert await seen_lately(here) == {hidden_id, resumed_id, mine_id}
    for wrong in (["a/b"], [""], ["r"] * 10_001):
        error = await here.call("POST", f"/v1/sessions/{mine_id}/heartbeat", {"run_ids": wrong}, status=400)
        assert error["field"] == "run_ids"


async def test_heartbeats_that_name_its_run_keep_a_stack_of_a_closed_session_in_use(here):
    over_id, mine_id = await make_sessions(here, 2)
    mine = {"project": "default", "base_model": "m", "message": "", "request": b""}
    async with here.db.transaction() as db:
        db.add(RunRow(run_id="run-1", session_id=over_id, state="ready", stack_id="s-1", **mine))
    uses = Uses(here.db)
    await here.call("DELETE", f"/v1/sessions/{over_id}")
    assert await uses.last_seen("s-1") > time.time() - 60, "closing is a sign of life"
    assert await uses.live_stacks(since=time.time() - 60) == set()
    await silent(here, mine_id, 120)
    closed = await uses.last_seen("s-1")
    await here.call("POST", f"/v1/sessions/{mine_id}/heartbeat", {"run_ids": ["run-1"]})
    assert await uses.last_seen("s-1") > closed
    assert await uses.live_stacks(since=time.time() - 60) == {"s-1"}


async def seen_lately(here):
    listed = (await here.call("GET", "/v1/sessions"))["sessions"]
    return {session["session_id"] for session in listed if session["last_seen_at"] > time.time() - 60}


async def test_a_session_whose_client_is_silent_is_closed_with_its_samplers(here):
    silent_id, lively_id, working_id = await make_sessions(here, 3)
    for session_id in (silent_id, lively_id):
        await here.call("POST", f"/v1/sessions/{session_id}/samplers", {"base_model": "fake/one"})
    for session_id in (silent_id, lively_id, working_id):
        await silent(here, session_id, 120)
    await here.call("POST", f"/v1/sessions/{lively_id}/heartbeat")
    await here.call("POST", f"/v1/sessions/{working_id}/runs", RUN)
    control = here.control
    housekeeping = Housekeeping(here.db, control.sessions, control.samplers, control.usage, silent_s=60)
    await housekeeping.sweep()
    assert [row["session_id"] for row in await pages(here, "/v1/sessions?state=closed", limit=9)] == [silent_id]
    assert [row["session_id"] for row in await pages(here, "/v1/samplers", limit=9)] == [lively_id]


async def test_housekeeping_goes_on_and_ends_when_told(here):
    (session_id,) = await make_sessions(here, 1)
    control = here.control
    housekeeping = Housekeeping(here.db, control.sessions, control.samplers, control.usage, silent_s=0.01)
    task = asyncio.create_task(housekeeping.run())
    async with asyncio.timeout(30):
        while "closed_at" not in await here.call("GET", f"/v1/sessions/{session_id}"):
            pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def silent(here, session_id, seconds):
    async with here.db.transaction() as db:
        this = SessionRow.session_id == session_id
        await db.execute(update(SessionRow).where(this).values(last_seen_at=time.time() - seconds))
