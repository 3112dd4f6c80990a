"""The control plane's memory: sessions, runs and samplers in one SQLite file.

It holds what was asked for and what became of it, never what runs just now: that is the fleet's to say.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import JSON, ForeignKey, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, str]: JSON}  # noqa: RUF012 - SQLAlchemy's own declaration


class SessionRow(Base):
    __tablename__ = "sessions"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    reuse_from_session_id: Mapped[str]
    user_metadata: Mapped[dict[str, str]]
    created_at: Mapped[float] = mapped_column(default=time.time)
    closed_at: Mapped[float | None] = mapped_column(default=None)


class RunRow(Base):
    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    state: Mapped[str]
    message: Mapped[str]
    base_model: Mapped[str]
    request: Mapped[bytes]  # the serialized ProvisionRunRequest
    created_at: Mapped[float] = mapped_column(default=time.time)


class SamplerRow(Base):
    __tablename__ = "samplers"

    sampler_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    state: Mapped[str]
    message: Mapped[str]
    base_model: Mapped[str]
    model_path: Mapped[str]
    created_at: Mapped[float] = mapped_column(default=time.time)


class Database:
    """One SQLite file in WAL mode. `opened` makes it, with its tables, where there is none."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path) -> AsyncIterator[Database]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        event.listen(engine.sync_engine, "connect", _configure)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            yield cls(engine)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Commits at the end of the block, or undoes all of it where that raises."""
        async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            yield session


def _configure(connection: sqlite3.Connection, record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
