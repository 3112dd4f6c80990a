"""Connections to SQLite that end even where whoever used them was cancelled, once or several times."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import weakref
from typing import Any

import aiosqlite

_ROWS_AT_ONCE = 64  # aiosqlite's own default


class Connections:
    """Those of one database, so that its user can wait for their threads."""

    def __init__(self) -> None:
        self._made: weakref.WeakSet[_Connection] = weakref.WeakSet()

    def connect(self, path: str, **options: Any) -> aiosqlite.Connection:
        """As `aiosqlite.connect`: what comes back is still to be awaited."""
        connection = _Connection(functools.partial(sqlite3.connect, path, **options), _ROWS_AT_ONCE)
        connection._thread.daemon = True  # as in SQLAlchemy's own connections: the interpreter does not wait for it
        self._made.add(connection)
        return connection

    async def closed(self) -> None:
        """Returns when all have stopped; none answers a loop that is gone."""
        for connection in list(self._made):
            stopped = connection.stop()
            if stopped is not None:
                await stopped


class _Connection(aiosqlite.Connection):
    """Stops once: aiosqlite's thread ends with the first stop, and whoever asked for a second would wait for ever."""

    _stopped: asyncio.Future[None] | None = None

    def stop(self) -> asyncio.Future[None] | None:
        if self._stopped is None:
            self._stopped = super().stop()
        return None if self._stopped is None else asyncio.shield(self._stopped)
