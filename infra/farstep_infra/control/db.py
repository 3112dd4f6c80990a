"""The control plane's memory: SQLite in one file, or PostgreSQL.

Invariant: what a transaction ended with is on the disk when the block is left. A database that is away for a while is
`Unavailable` within seconds, never a request that hangs, and is used again as soon as it is back.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from farstep_infra.control.engine import READS, is_file, make_engine, parse
from farstep_infra.control.schema import SchemaRefused, bring_up_to_date
from farstep_infra.control.sole_use import SoleUse
from farstep_infra.control.sqlite import Connections
from farstep_infra.control.tables import Base
from farstep_proto.errors import ApiError, StorageFull, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 10.0  # with a database that does not answer
START_S = 30.0  # a database that starts beside us may take that long
_ASK_AGAIN_S = 0.25
_MIGRATION_S = 120.0
_RETRY_AFTER_S = 2.0
# SQLSTATEs that pass, or that an operator ends: connections, logins, no such database, resources, shutdown, locks.
_AWAY = ("08", "28", "3D", "53", "57", "40001", "40P01", "55P03")
_DISK_FULL = "53100"


class Database:
    """Args:
        url: `postgresql://user:password@host/name`, or what `url_of_file` says.
        patience_s: how long a transaction may last, with the wait for its connection and for what others hold.

    Raises:
        InvalidInput: it is neither.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self._url = parse(url)
        self._patience_s = patience_s
        self._connections = Connections()
        self._engine = make_engine(self._url, patience_s=patience_s, connections=self._connections)
        self._reader = self._engine.execution_options(**{READS: True})

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """With its schema brought up to date.

        Raises:
            SchemaRefused: this version cannot use it.
            Unavailable: it did not answer within `START_S`, or another control plane uses it.
        """
        try:
            async with self._sole_use():
                await self._wait_for(self._migrate)
                yield
        finally:
            await self._engine.dispose()
            await self._connections.closed()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Commits at the end of the block, or undoes all of it where that raises.

        Raises:
            Unavailable: the database is away, or busy for too long.
            StorageFull: its disk is full.
        """
        async with self._session(self._engine) as session:
            yield session

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """The same for who only looks: on SQLite it waits for no writer."""
        async with self._session(self._reader) as session:
            yield session

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
        bound = _translated(within_s=self._patience_s)
        try:
            async with bound, AsyncSession(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except Unavailable as error:
            log.warning("%s", reason_of(error))
            raise

    async def insist(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """A transaction that is tried until the database is there: for what has happened and must be known."""
        pause_s = 0.1
        while True:
            try:
                async with self.transaction() as session:
                    return await work(session)
            except (Unavailable, StorageFull) as error:
                log.warning("tried again: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)

    @asynccontextmanager
    async def _sole_use(self) -> AsyncIterator[None]:
        if is_file(self._url):
            yield
            return
        engine = make_engine(self._url, patience_s=self._patience_s, connections=self._connections, is_pooled=False)
        sole = SoleUse(engine)

        async def take() -> None:
            async with _translated(within_s=self._patience_s):
                if not await sole.take():
                    raise Unavailable("another control plane uses it")

        try:
            await self._wait_for(take)
            keeping = asyncio.create_task(sole.keep(), name="sole-use")
            try:
                yield
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
        finally:
            await sole.release()
            await engine.dispose()

    async def _wait_for(self, work: Callable[[], Awaitable[None]]) -> None:
        deadline = time.monotonic() + START_S
        say = log.warning
        while True:
            try:
                return await work()
            except Unavailable as error:
                if time.monotonic() > deadline:
                    raise
                say("%s: %s; trying for %.0f s", self, reason_of(error), START_S)
                say = log.debug
                await asyncio.sleep(_ASK_AGAIN_S)

    async def _migrate(self) -> None:
        engine = make_engine(self._url, patience_s=_MIGRATION_S, connections=self._connections, is_pooled=False)
        try:
            async with _translated(within_s=_MIGRATION_S), engine.begin() as connection:
                await connection.run_sync(bring_up_to_date)
        finally:
            await engine.dispose()


def reason_of(error: Unavailable) -> str:
    """What the database said, or did not."""
    return ": ".join([error.message, *getattr(error, "__notes__", [])])


async def insert_new(db: AsyncSession, table: type[Base], **values: object) -> bool:
    """Inserts a row unless its key is there already; whether it did. Of two at once, the second waits for the first."""
    insert = sqlite.insert if db.get_bind().dialect.name == "sqlite" else postgresql.insert
    result = await db.execute(insert(table).values(**values).on_conflict_do_nothing())
    return bool(result.rowcount)  # type: ignore[attr-defined]


@asynccontextmanager
async def _translated(*, within_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(within_s):
            yield
    except (ApiError, SchemaRefused):
        raise
    except (TimeoutError, OSError, PoolTimeout, PendingRollbackError) as error:
        raise _away(str(error) or "no answer") from error
    except DBAPIError as error:
        raise (_ours(error) or error) from error


def _ours(error: DBAPIError) -> ApiError | None:
    """What a failure of the database's means for who asked, or None where the mistake is in our statement."""
    origin = error.orig.__cause__ or error.orig if error.orig is not None else None
    match origin:
        case sqlite3.OperationalError(sqlite_errorname=str(name)):
            if name.startswith("SQLITE_FULL"):
                return StorageFull("the control plane's database has no room")
            passes = name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_CANTOPEN"))
            return _away(str(origin)) if passes else None
    state = str(getattr(origin, "sqlstate", None) or "")
    if state == _DISK_FULL:
        return StorageFull("the control plane's database has no room")
    is_away = error.connection_invalidated or state.startswith(_AWAY) or isinstance(origin, OSError | TimeoutError)
    if is_away or (not state and isinstance(error, InterfaceError | OperationalError)):
        return _away(str(origin))
    return None


def _away(reason: str) -> Unavailable:
    away = Unavailable(
        "the control plane's database does not answer just now", hint="try again", retry_after_s=_RETRY_AFTER_S
    )
    away.add_note(reason)  # for the operator, not for who asked
    return away
