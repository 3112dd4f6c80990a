"""One control plane a database: what another has running would be taken for ended, and its servers started twice.

PostgreSQL knows by an advisory lock that a connection holds, and frees it when that ends, however its process did. A
SQLite file lies in a home, which has a lock of its own.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

log = logging.getLogger(__name__)

_LOCK = 0x6661727374657000  # "farstep", as a number
_TAKE = text(f"SELECT pg_try_advisory_lock({_LOCK})")
_RELEASE = text(f"SELECT pg_advisory_unlock({_LOCK})")
_LOOK_EVERY_S = 5.0
_RELEASE_S = 2.0


class SoleUse:
    """Args: `engine`: of PostgreSQL, without a pool."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._holder: AsyncConnection | None = None

    async def take(self) -> bool:
        """Whether the database is ours now, and until `release`."""
        connection = await self._engine.connect()
        try:
            is_ours = bool((await connection.execute(_TAKE)).scalar())
        except BaseException:
            await _drop(connection)
            raise
        if not is_ours:
            await connection.close()
            return False
        self._holder = connection
        return True

    async def keep(self) -> None:
        """Takes it again after every restart of the database; for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                if self._holder is not None:
                    await self._holder.execute(text("SELECT 1"))
                elif not await self.take():
                    log.error("another control plane uses this database now; end one of them")
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.debug("the database is away: %s", error)
                await self._let_go()

    async def release(self) -> None:
        if self._holder is not None:
            with suppress(SQLAlchemyError, OSError, TimeoutError):  # the end of the connection frees it as well
                async with asyncio.timeout(_RELEASE_S):
                    await self._holder.execute(_RELEASE)
        await self._let_go()

    async def _let_go(self) -> None:
        if self._holder is not None:
            connection, self._holder = self._holder, None
            await _drop(connection)


async def _drop(connection: AsyncConnection) -> None:
    with suppress(SQLAlchemyError, OSError, TimeoutError):  # it may be broken already
        await connection.invalidate()
        await connection.close()
