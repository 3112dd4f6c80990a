"""Creations that are asked for twice are done once."""

import asyncio
import time

from sqlalchemy import func, select, update

from farstep_infra.control.idempotency import KEPT_S, forget_old_answers
from farstep_infra.control.tables import AnsweredRow, SessionRow

RUN = {"base_model": "fake/one", "lora": {"rank": 4, "train_mlp": True}}
KEY = "Idempotency-Key"


async def count(here, table):
    async with here.db.reading() as db:
        return (await db.execute(select(func.count()).select_from(table))).scalar_one()


async def test_every_creation_is_answered_again_with_what_was_answered(here):
    session = await here.call("POST", "/v1/sessions", {}, **{KEY: "session"})
    path = f"/v1/sessions/{session['session_id']}"
    asked = {
        "/v1/sessions": {"user_metadata": {"a": "b", "c": "d"}},
        f"{path}/runs": RUN,
        f"{path}/samplers": {"base_model": "fake/one"},
        "/v1/projects": {"project": "alpha"},
    }
    for place, body in asked.items():
        first, again = [await here.send("POST", place, body, **{KEY: place}) for _ in range(2)]
        assert first.is_success
        assert (again.status_code, again.json()) == (first.status_code, first.json())  # maps have no order
        other = await here.send("POST", place, body, **{KEY: f"{place}-2"})
        assert other.content != first.content
    assert await here.call("POST", "/v1/sessions", {}, **{KEY: "session"}) == session


async def test_a_key_is_made_once_and_its_secret_told_once(here):
    first, again = [await here.call("POST", "/v1/keys", {"project": "alpha"}, **{KEY: "k"}) for _ in range(2)]
    assert first["key"] == again["key"]
    assert "secret" not in again
    async with here.db.reading() as db:
        (kept,) = (await db.execute(select(AnsweredRow.answer))).scalars()
    assert first["secret"].encode() not in kept


async def test_two_at_once_make_one_thing(here):
    answers = await asyncio.gather(*(here.call("POST", "/v1/sessions", {}, **{KEY: "same"}) for _ in range(8)))
    assert len({answer["session_id"] for answer in answers}) == 1
    assert await count(here, SessionRow) == 1


async def test_the_same_key_with_something_else_is_a_conflict(here):
    session = await here.call("POST", "/v1/sessions", {}, **{KEY: "k"})
    error = await here.call("POST", "/v1/sessions", {"user_metadata": {"a": "b"}}, status=409, **{KEY: "k"})
    assert error["field"] == KEY
    path = f"/v1/sessions/{session['session_id']}/samplers"
    await here.call("POST", path, {"base_model": "m"}, status=409, **{KEY: "k"})


async def test_a_refusal_is_not_remembered(here):
    await here.call("POST", "/v1/projects", {"project": "alpha", "quotas": {"max_sessions": 0}})
    alpha = await here.as_project("alpha")
    await alpha.call("POST", "/v1/sessions", {}, status=403, **{KEY: "k"})
    await here.call("PUT", "/v1/projects/alpha", {"quotas": {"max_sessions": 1}})
    session = await alpha.call("POST", "/v1/sessions", {}, **{KEY: "k"})
    # The quota is used up now: by what the same question made.
    assert await alpha.call("POST", "/v1/sessions", {}, **{KEY: "k"}) == session


async def test_another_caller_has_keys_of_its_own(here):
    alpha, also_alpha = await here.as_project("alpha"), await here.as_project("alpha")
    sessions = [await caller.call("POST", "/v1/sessions", {}, **{KEY: "k"}) for caller in (here, alpha, also_alpha)]
    assert len({session["session_id"] for session in sessions}) == 3


async def test_after_a_day_it_is_a_new_question_and_the_old_answer_goes(here):
    first = await here.call("POST", "/v1/sessions", {}, **{KEY: "k"})
    await age(here, KEPT_S - 60)
    assert await here.call("POST", "/v1/sessions", {}, **{KEY: "k"}) == first
    await age(here, KEPT_S + 60)
    assert (await here.call("POST", "/v1/sessions", {}, **{KEY: "k"}))["session_id"] != first["session_id"]
    await age(here, KEPT_S + 60)
    async with here.db.transaction() as db:
        await forget_old_answers(db)
    assert await count(here, AnsweredRow) == 0


async def age(here, seconds):
    async with here.db.transaction() as db:
        await db.execute(update(AnsweredRow).values(created_at=time.time() - seconds))


async def test_what_is_no_key_is_refused(here):
    for key in ("", "x" * 201, "a\tb"):
        assert (await here.call("POST", "/v1/sessions", {}, status=400, **{KEY: key}))["field"] == KEY
