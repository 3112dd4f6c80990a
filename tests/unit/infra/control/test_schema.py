"""The schema: what migrations leave is what the tables say, whoever was there before, however many start at once."""

import json
import sqlite3
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from farstep_infra.control.db import Database
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.schema import SchemaRefused
from farstep_infra.control.tables import Base, ProjectRow, RunRow, SamplerRow, SessionRow

# As SQLAlchemy made it before the schema had versions.
UNVERSIONED = """
CREATE TABLE sessions (session_id VARCHAR NOT NULL, project VARCHAR NOT NULL, reuse_from_session_id VARCHAR NOT NULL,
    user_metadata JSON NOT NULL, created_at FLOAT NOT NULL, closed_at FLOAT, PRIMARY KEY (session_id));
CREATE TABLE runs (run_id VARCHAR NOT NULL, session_id VARCHAR NOT NULL, state VARCHAR NOT NULL,
    message VARCHAR NOT NULL, base_model VARCHAR NOT NULL, request BLOB NOT NULL, created_at FLOAT NOT NULL,
    PRIMARY KEY (run_id), FOREIGN KEY(session_id) REFERENCES sessions (session_id));
CREATE INDEX ix_runs_session_id ON runs (session_id);
CREATE TABLE samplers (sampler_id VARCHAR NOT NULL, session_id VARCHAR NOT NULL, state VARCHAR NOT NULL,
    message VARCHAR NOT NULL, base_model VARCHAR NOT NULL, model_path VARCHAR NOT NULL, created_at FLOAT NOT NULL,
    PRIMARY KEY (sampler_id), FOREIGN KEY(session_id) REFERENCES sessions (session_id));
CREATE INDEX ix_samplers_session_id ON samplers (session_id);
"""


async def run_sync(database, look):
    async with database.transaction() as db:
        return await (await db.connection()).run_sync(look)


async def test_migrations_end_at_the_tables(database_url):
    db = Database(database_url)
    async with db.opened():
        differences = await run_sync(
            db, lambda connection: compare_metadata(MigrationContext.configure(connection), Base.metadata)
        )
    assert differences == []


async def test_what_was_there_before_versions_is_taken_over_whole(tmp_path):
    path = tmp_path / "control.db"
    old = sqlite3.connect(path)
    old.execute("PRAGMA journal_mode=WAL")
    old.executescript(UNVERSIONED)
    metadata = json.dumps({"a": "b"})
    old.execute("INSERT INTO sessions VALUES ('s-1', '', '', ?, 1.25, NULL)", [metadata])
    old.execute("INSERT INTO sessions VALUES ('s-2', 'ours', 's-1', ?, 2.25, 9.5)", [metadata])
    old.execute("INSERT INTO runs VALUES ('r-1', 's-2', 'failed', 'gone', 'm', x'0a016d', 3.25)")
    old.execute("INSERT INTO samplers VALUES ('p-1', 's-1', 'failed', 'gone', 'm', '', 4.25)")
    old.commit()
    old.close()
    for _ in range(2):  # it stays taken over
        database = Database(url_of_file(path))
        async with database.opened(), database.transaction() as db:
            sessions = (await db.execute(select(SessionRow).order_by(SessionRow.session_id))).scalars().all()
            projects = (await db.execute(select(ProjectRow).order_by(ProjectRow.project))).scalars().all()
            run, sampler = await db.get_one(RunRow, "r-1"), await db.get_one(SamplerRow, "p-1")
        first, second = ({**vars(row)} for row in sessions)
        assert (first["project"], first["created_at"], first["last_seen_at"]) == ("default", 1.25, 1.25)
        assert (second["project"], second["closed_at"], second["user_metadata"]) == ("ours", 9.5, {"a": "b"})
        assert second["reuse_from_session_id"] == "s-1"
        assert [(row.project, row.created_at) for row in projects] == [("default", 1.25), ("ours", 2.25)]
        assert (run.project, run.request, run.message) == ("ours", b"\n\x01m", "gone")
        assert (sampler.project, sampler.session_id) == ("default", "s-1")


async def test_a_database_of_a_newer_version_is_refused_by_name(database_url):
    database = Database(database_url)
    async with database.opened(), database.transaction() as db:
        await db.execute(text("UPDATE alembic_version SET version_num = '9001'"))
    for _ in range(2):  # and is left as it was
        with pytest.raises(SchemaRefused, match=r"9001.*upgrade Farstep"):
            async with Database(database_url).opened():
                pass


async def test_somebody_elses_tables_are_refused(database_url):
    database = Database(database_url)
    async with database.transaction() as db:
        await db.execute(text("CREATE TABLE sessions (id INTEGER)"))
    with pytest.raises(SchemaRefused, match="another program"):
        async with database.opened():
            pass


def test_of_many_that_start_at_once_one_migrates_and_all_follow(database_url):
    start = (
        "import asyncio, sys\n"
        "from farstep_infra.control.db import Database\n"
        "async def main():\n"
        "    async with Database(sys.argv[1]).opened():\n"
        "        print('opened')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", start, database_url]
    processes = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert [(process.returncode, out) for process, (out, _) in zip(processes, answers, strict=True)] == [
        (0, "opened\n")
    ] * 3, answers
