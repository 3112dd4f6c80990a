"""The control plane as a process: on PostgreSQL, and what it refuses to start on."""

import signal
import sqlite3

import pytest

pytestmark = pytest.mark.system


def test_it_runs_on_postgresql_and_remembers_there(start, postgres):
    url = postgres.database()
    up = start(FARSTEP_DATABASE_URL=url)
    created = up.call("POST", "/v1/keys", {"project": "alpha"})
    session_id = up.session(project="alpha")
    assert up.run(session_id)["state"] == "ready"
    assert not (up.home / "control.db").exists()
    assert all("FARSTEP_DATABASE_URL" not in child.environ() for child in up.family())
    up.stop()
    again = start(FARSTEP_DATABASE_URL=url)
    again.key = created["secret"]
    assert [session["session_id"] for session in again.call("GET", "/v1/sessions")["sessions"]] == [session_id]
    assert len(again.call("GET", "/v1/runs")["runs"]) == 1


def test_a_restart_of_the_database_is_no_end(start, postgres):
    up = start(f"--database={postgres.database()}")
    session_id = up.session()
    postgres.kill()
    assert up.call("GET", "/v1/runs", status=503)["retry_after_s"] > 0
    assert up.call("GET", "/v1/capabilities"), "what needs no database goes on"
    postgres.start()
    assert up.run(session_id)["state"] == "ready"
    assert up.stop() == 0


def test_it_says_what_is_wrong_with_a_database(start):
    with pytest.raises(ChildProcessError, match="mysql") as caught:
        start(FARSTEP_DATABASE_URL="mysql://me:hunter2@host/x")
    assert "hunter2" not in str(caught.value)
    up = start()
    up.stop(signal.SIGTERM)
    with sqlite3.connect(up.home / "control.db") as db:
        db.execute("UPDATE alembic_version SET version_num = '9001'")
    db.close()
    with pytest.raises(ChildProcessError, match=r"9001.*upgrade Farstep") as caught:
        start()
    assert "Traceback" not in str(caught.value)
