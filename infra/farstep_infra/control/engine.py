"""How each database is connected to: which URLs there are, and what a connection is told first."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from farstep_infra.control.sqlite import Connections
from farstep_proto.errors import InvalidInput

READS = "farstep_reads"  # execution option of who only looks
_SQLITE = "sqlite+aiosqlite"
_POSTGRESQL = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_PARAMETERS = frozenset({"host", "port", "ssl", "passfile"})
_SSL = frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"})


def url_of_file(path: Path) -> str:
    return URL.create(_SQLITE, database=str(path)).render_as_string()


def is_file(url: URL) -> bool:
    return url.drivername == _SQLITE


def parse(url: str) -> URL:
    """Raises:
    InvalidInput: it is no database that there is.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidInput("not a database URL", field="--database", hint="postgresql://user@host/name") from error
    if parsed.drivername == _SQLITE:
        return parsed
    if parsed.drivername not in _POSTGRESQL:
        raise InvalidInput(
            f"{parsed.drivername!r} is no database that Farstep knows",
            field="--database",
            hint="postgresql://user@host/name; without one, a SQLite file in the home is used",
        )
    query = dict(parsed.query)
    if "sslmode" in query:  # as libpq and everybody's settings call it
        query["ssl"] = query.pop("sslmode")
    for name, value in query.items():
        if name not in _PARAMETERS or (name == "ssl" and value not in _SSL):
            hint = "sslmode, host, port, passfile; what else there is to say, PostgreSQL's own PG… variables say"
            raise InvalidInput(f"its parameter {name!r} is not known, or not so", field="--database", hint=hint)
    if importlib.util.find_spec("asyncpg") is None:
        raise InvalidInput("asyncpg is not installed", field="--database", hint="pip install 'farstep[postgres]'")
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def make_engine(url: URL, *, patience_s: float, connections: Connections, is_pooled: bool = True) -> AsyncEngine:
    """Waits for locks and for answers end a little before the patience does, and so tell what it was.

    Without a pool it is for migrations, which must be free to break a reference for a moment. SQLite's connections are
    of `connections`.
    """
    options: dict[str, Any] = {"pool_timeout": patience_s} if is_pooled else {"poolclass": NullPool}
    lock_ms = round(patience_s / 2 * 1000)
    if is_file(url):
        engine = create_async_engine(url, connect_args={"async_creator_fn": connections.connect}, **options)
        pragmas = [
            f"busy_timeout={lock_ms}",
            "journal_mode=WAL",
            "synchronous=FULL",  # what was answered survives the power
            f"foreign_keys={'ON' if is_pooled else 'OFF'}",
        ]
        event.listen(engine.sync_engine, "connect", lambda connection, _: _configure(connection, pragmas))
        event.listen(engine.sync_engine, "begin", _begin)
        return engine
    settings = {"application_name": "farstep", "lock_timeout": f"{lock_ms}", "synchronous_commit": "on"}
    if is_pooled:
        options["pool_pre_ping"] = True
        settings["idle_in_transaction_session_timeout"] = f"{2 * patience_s * 1000:.0f}"  # of a client that vanished
    waits = {"timeout": patience_s / 2, "command_timeout": patience_s * 0.8}
    return create_async_engine(url, connect_args={**waits, "server_settings": settings}, **options)


def _configure(connection: Any, pragmas: list[str]) -> None:
    connection.isolation_level = None  # sqlite3 begins no transactions by itself: `_begin` does
    cursor = connection.cursor()
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # Who will write has the write lock from the start: what it has read is still so when it writes.
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
