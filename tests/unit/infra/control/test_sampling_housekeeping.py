"""What sessions sampled from is forgotten when nobody can ask for it any more, and never sooner."""

import time

import pytest
from sqlalchemy import select, update

from farstep_infra.control.housekeeping import Housekeeping
from farstep_infra.control.tables import SamplingSessionRow, SessionRow
from farstep_infra.gateway.sampling_sessions import SamplingSessions
from farstep_proto.errors import NotFound
from farstep_serving.keys import OPERATOR

DAY_S = 86_400.0


async def session(here, *, closed=True, silent_days=0.0):
    """One with three sampling sessions; their ids."""
    session_id = (await here.call("POST", "/v1/sessions"))["session_id"]
    sampling = here.app.state.gateway.sampling_sessions
    ids = [
        await sampling.enter(session_id, number, project="default", base_model="fake/one", policy_version=number)
        for number in range(3)
    ]
    if closed:
        await here.control.sessions.close(session_id, caller=OPERATOR)
    await set_silent(here, session_id, silent_days)
    return ids


async def set_silent(here, session_id, days):
    async with here.db.transaction() as db:
        this = update(SessionRow).where(SessionRow.session_id == session_id)
        await db.execute(this.values(last_seen_at=time.time() - days * DAY_S))


async def left(here):
    async with here.db.reading() as db:
        return set((await db.execute(select(SamplingSessionRow.sampling_session_id))).scalars())


def housekeeping(here, **settings):
    control = here.control
    silent_s = 365 * DAY_S
    return Housekeeping(here.db, control.sessions, control.samplers, control.usage, silent_s=silent_s, **settings)


async def test_only_what_nobody_samples_from_is_forgotten(here):
    open_ones = await session(here, closed=False, silent_days=100)
    fresh = await session(here, silent_days=29)
    old = await session(here, silent_days=31)
    await housekeeping(here).sweep()
    assert await left(here) == {*open_ones, *fresh}
    with pytest.raises(NotFound):
        await here.app.state.gateway.sampling_sessions.get(old[0], caller=OPERATOR)


async def test_who_goes_on_sampling_with_a_closed_session_keeps_all_of_it(here):
    """In another process, as with an unpickled client: its sessions were looked up before, and it says nothing else."""
    ids = await session(here, silent_days=31)
    elsewhere = SamplingSessions(here.db)  # as after a restart, too
    assert (await elsewhere.get(ids[1], caller=OPERATOR)).policy_version == 1
    await housekeeping(here).sweep()
    assert await left(here) == set(ids)


async def test_use_is_noted_now_and_then_and_looked_at_as_seldom(here):
    ids = await session(here)
    session_id = ids[0].partition(":")[0]
    sampling = here.app.state.gateway.sampling_sessions
    for sampling_session_id in ids * 2:
        await sampling.get(sampling_session_id, caller=OPERATOR)
        await set_silent(here, session_id, 31)  # noted at first, and not again within the hour
    keeper = housekeeping(here)
    await keeper.sweep()
    assert await left(here) == set()
    others = await session(here, silent_days=31)
    await keeper.sweep()
    assert await left(here) == set(others)


async def test_who_may_not_see_one_does_not_keep_it(here):
    ids = await session(here, silent_days=31)
    stranger = await here.as_project("lab")
    response = await stranger.send("GET", f"/api/v1/samplers/{ids[0]}")
    assert response.status_code == 404
    await housekeeping(here).sweep()
    assert await left(here) == set()
