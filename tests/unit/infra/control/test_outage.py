"""A database that goes away: refused clearly and soon, nothing lost, and used again as soon as it is back."""

import asyncio
import contextlib
import sqlite3
import sys
import time

import psutil
import pytest
from sqlalchemy import text

from farstep_infra.control.db import Database, reason_of
from farstep_infra.control.engine import url_of_file
from farstep_proto.errors import InvalidInput, StorageFull, Unavailable
from tests.support.postgres import cluster

PATIENCE_S = 4.0
RUN = {"base_model": "fake/one", "lora": {"rank": 4, "train_mlp": True}}


@pytest.fixture(scope="module")
def mortal():
    """A PostgreSQL that the tests here may end."""
    with cluster() as running:
        yield running


@pytest.fixture
async def here(mortal, serve, tmp_path):
    db = Database(await asyncio.to_thread(mortal.database), patience_s=PATIENCE_S)
    async with db.opened(), serve(db, tmp_path) as running:
        yield running


async def refused(here, *, at_once=25):
    """Many requests of every kind, none of which may hang, end as our mistake, or say anything but 503."""
    asked = [("POST", "/v1/sessions", {}), ("GET", "/v1/runs", None), ("GET", "/v1/sessions/x", None)]
    began = time.monotonic()
    answers = await asyncio.gather(*(here.send(*asked[number % 3]) for number in range(at_once)))
    assert {answer.status_code for answer in answers} == {503}, answers[0].text
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert answers[0].json()["error_class"] == "UnavailableError"
    assert "database" in answers[0].json()["message"]
    assert time.monotonic() - began < 30
    assert (await here.send("GET", "/health")).status_code == 200


async def test_a_restart_is_503_and_then_over(here, mortal):
    session = await here.call("POST", "/v1/sessions", {})
    alpha = await here.as_project("alpha")
    for end in (mortal.stop, mortal.kill):
        await asyncio.to_thread(end)
        await refused(here)
        assert (await alpha.send("GET", "/v1/sessions")).status_code == 503, "not 401: nobody can tell"
        await asyncio.to_thread(mortal.start)
        assert await here.call("GET", f"/v1/sessions/{session['session_id']}") == session
        created = await asyncio.gather(*(alpha.call("POST", "/v1/sessions", {}) for _ in range(10)))
        listed = (await alpha.call("GET", "/v1/sessions"))["sessions"]
        assert {row["session_id"] for row in created} <= {row["session_id"] for row in listed}


async def test_a_restart_that_nobody_noticed_is_nobodys_trouble(here, mortal):
    await asyncio.gather(*(here.call("POST", "/v1/sessions", {}) for _ in range(10)))  # connections are there
    await asyncio.to_thread(mortal.stop)
    await asyncio.to_thread(mortal.start)
    await asyncio.gather(*(here.call("POST", "/v1/sessions", {}) for _ in range(10)))


async def test_a_database_that_hangs_is_503_in_bounded_time(here, mortal):
    await asyncio.gather(*(here.call("POST", "/v1/sessions", {}) for _ in range(10)))  # connections are there
    with frozen(mortal):
        await refused(here)
    await recovered(here)
    await asyncio.gather(*(here.call("POST", "/v1/sessions", {}) for _ in range(5)))


async def recovered(here):
    """Once it answers it is as it was; on a busy machine the first answer may come too late."""
    async with asyncio.timeout(60):
        while (await here.send("POST", "/v1/sessions", {})).status_code != 201:
            pass


async def test_what_happened_meanwhile_is_written_when_it_is_back(here, mortal):
    session = await here.call("POST", "/v1/sessions", {})
    run = await here.call("POST", f"/v1/sessions/{session['session_id']}/runs", RUN)
    await asyncio.to_thread(mortal.stop)
    here.launcher.ended.set()
    await refused(here)
    await asyncio.to_thread(mortal.start)
    settled = await here.call("GET", f"/v1/runs/{run['run_id']}?wait_s=30")
    assert (settled["state"], settled["message"]) == ("failed", "there is no machine")


async def test_a_transaction_that_is_cut_leaves_nothing(here, mortal):
    async def cut():
        async with here.db.transaction() as db:
            await db.execute(text("INSERT INTO projects (project, created_at) VALUES ('cut', 1)"))
            await asyncio.to_thread(mortal.kill)
            await db.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        await cut()
    await asyncio.to_thread(mortal.start)
    await here.call("GET", "/v1/projects/cut", status=404)


@pytest.mark.parametrize("what", ["runs", "samplers"])
@pytest.mark.parametrize("is_entered", [True, False])
async def test_a_creation_whose_end_nobody_heard_is_gone_on_with(here, monkeypatch, what, is_entered):
    session = await here.call("POST", "/v1/sessions", {})
    body = RUN if what == "runs" else {"base_model": "fake/one"}
    whole = here.db.transaction

    @contextlib.asynccontextmanager
    async def cut_off():
        monkeypatch.setattr(here.db, "transaction", whole)  # this one alone
        async with whole() as db:
            yield db
            if not is_entered:
                raise Unavailable("the connection broke before the commit")
        raise Unavailable("the connection broke, and nobody knows when")

    once = {"Idempotency-Key": "one"}
    path = f"/v1/sessions/{session['session_id']}/{what}"
    monkeypatch.setattr(here.db, "transaction", cut_off)
    await here.call("POST", path, body, status=503, **once)
    here.launcher.ended.set()
    again = await here.call("POST", path, body, **once)
    (ident,) = [value for name, value in again.items() if name in ("run_id", "sampler_id")]
    settled = await here.call("GET", f"/v1/{what}/{ident}?wait_s=30")
    assert (settled["state"], settled["message"]) == ("failed", "there is no machine"), "somebody provisions it"
    assert len((await here.call("GET", f"/v1/{what}"))[what]) == 1


async def test_a_second_control_plane_is_kept_off_also_after_a_restart_of_the_database(mortal, monkeypatch):
    monkeypatch.setattr("farstep_infra.control.db.START_S", 0.5)
    monkeypatch.setattr("farstep_infra.control.sole_use._LOOK_EVERY_S", 0.05)
    url = await asyncio.to_thread(mortal.database)

    async def open_second():
        async with Database(url).opened():
            pass

    async with Database(url).opened():
        with pytest.raises(Unavailable, match="another control plane"):
            await open_second()
        await asyncio.to_thread(mortal.kill)
        await asyncio.to_thread(mortal.start)
        async with asyncio.timeout(30):
            while True:  # until the first has it again
                try:
                    await open_second()
                except Unavailable:
                    break
    await open_second()


@contextlib.contextmanager
def frozen(running):
    processes = [psutil.Process(running.process.pid)]
    processes[0].suspend()  # first, so that it starts no more
    processes += processes[0].children(recursive=True)
    for process in processes[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it was ending just then
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def test_a_sqlite_file_that_somebody_holds_is_503_until_it_is_free(serve, tmp_path):
    path = tmp_path / "control.db"
    db = Database(url_of_file(path), patience_s=PATIENCE_S)
    async with db.opened(), serve(db, tmp_path) as here:
        session = await here.call("POST", "/v1/sessions", {})
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert (await here.send("POST", "/v1/sessions", {})).status_code == 503
            assert await here.call("GET", f"/v1/sessions/{session['session_id']}") == session, "reading goes on"
        await here.call("POST", "/v1/sessions", {})


async def test_a_sqlite_file_without_room_says_so(tmp_path):
    db = Database(url_of_file(tmp_path / "control.db"))

    async def fill():
        async with db.transaction() as session:
            await session.execute(text("PRAGMA max_page_count = 1"))  # at least what there is
            name = text("INSERT INTO projects (project, created_at) VALUES (:name, 1)")
            await session.execute(name, {"name": "x" * 1_000_000})

    async with db.opened():
        with pytest.raises(StorageFull):
            await fill()


async def test_what_was_acknowledged_is_on_the_disk(tmp_path):
    db = Database(url_of_file(tmp_path / "control.db"))
    async with db.opened(), db.transaction() as session:
        pragmas = {
            name: (await session.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("synchronous", "journal_mode")
        }
    assert pragmas == {"synchronous": 2, "journal_mode": "wal"}


async def test_what_an_operator_must_change_is_told_to_operators(mortal, monkeypatch):
    monkeypatch.setattr("farstep_infra.control.db.START_S", 0.1)
    for url, reason in (
        (mortal.url("nothing"), 'database "nothing" does not exist'),
        (mortal.url("postgres").replace("//farstep@", "//nobody@"), 'role "nobody" does not exist'),
    ):
        with pytest.raises(Unavailable) as caught:
            await Database(url).opened().__aenter__()
        assert reason in reason_of(caught.value)
        assert reason not in caught.value.message


def test_what_is_no_database_is_refused(monkeypatch):
    wrong = ["", "nonsense", "mysql://host/name", "sqlite:///file.db", "postgresql://host:port/x"]
    wrong += ["postgresql://host/x?sslmode=huh", "postgresql://host/x?command_timeout=1"]
    for url in wrong:
        with pytest.raises(InvalidInput) as caught:
            Database(url)
        assert caught.value.field == "--database"
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(InvalidInput, match="asyncpg") as caught:
        Database("postgresql://host/x")
    assert "farstep[postgres]" in caught.value.hint


def test_passwords_are_not_shown():
    assert "hunter2" not in str(Database("postgresql://me:hunter2@host/name?sslmode=require"))
