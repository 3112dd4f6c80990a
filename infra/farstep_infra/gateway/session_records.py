"""Sessions as the Tinker wire asks for them: from the newest on, by what they are about, with what is in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import func, select, tuple_

from farstep_infra.control.control import Control
from farstep_infra.control.db import Database
from farstep_infra.control.projects import enter
from farstep_infra.control.scope import find, visible
from farstep_infra.control.sessions import session_message
from farstep_infra.control.tables import RunRow, SamplerRow, SamplingSessionRow, SessionRow
from farstep_infra.gateway.run_records import RunRecords
from farstep_infra.gateway.session_search import Place, Search, SessionSummary, matches, summary
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import Caller

_ROWS_AT_ONCE = 500
_NEWEST = (SessionRow.created_at.desc(), SessionRow.session_id.desc())


class SessionRecords:
    """Args: `caller` is who is to see them."""

    def __init__(self, control: Control, db: Database, caller: Caller) -> None:
        self._control = control
        self._db = db
        self._caller = caller

    async def ids(self, *, limit: int, offset: int) -> Sequence[str]:
        """Newest first."""
        query = visible(select(SessionRow.session_id), self._caller, SessionRow.project)
        async with self._db.reading() as db:
            return (await db.execute(query.order_by(*_NEWEST).limit(limit).offset(offset))).scalars().all()

    async def runs_of(self, session_id: str) -> Sequence[str]:
        """Of a session that the caller may see."""
        query = select(RunRow.run_id).where(RunRow.session_id == session_id).order_by(RunRow.created_at, RunRow.run_id)
        async with self._db.reading() as db:
            return (await db.execute(query)).scalars().all()

    async def sampling_sessions_of(self, session_id: str) -> Sequence[str]:
        """Of a session that the caller may see."""
        row = SamplingSessionRow
        query = select(row.sampling_session_id).where(row.session_id == session_id)
        async with self._db.reading() as db:
            found = await db.execute(query.order_by(row.created_at, row.sampling_session_id))
            return found.scalars().all()

    async def search(self, search: Search) -> tuple[list[SessionSummary], Place | None]:
        """A page, newest first, and where the next one begins.

        Raises:
            NotFound: one of the projects is not the caller's.
        """
        for project in search.project_ids or ():
            if not self._caller.may_see(project):
                raise NotFound(f"no project {project[:200]!r}", field="project_ids")
        now, found, more = time.time(), list[control_pb2.Session](), False
        async for session in self._from(search.cursor):
            if matches(session, search, now=now):
                if more := len(found) == search.limit:
                    break
                found.append(session)
        summaries = [await self._summary(session, now=now) for session in found]
        last = summaries[-1] if more else None
        following = Place(last_created_at=last.created_at, last_session_id=last.session_id) if last else None
        return summaries, following

    async def assign(self, session_id: str, project: str) -> None:
        """Gives a session to another project, as long as nothing is in it: what runs made is the first one's for ever.

        Raises:
            NotFound: there is no such session, or no such project, that the caller may see.
            InvalidInput: it has runs or samplers, or that is no name of a project.
        """
        async with self._db.transaction() as db:
            row = await find(db, SessionRow, session_id, self._caller, lock=True)
            if row is None:
                raise NotFound(f"no session {session_id!r}", field="session_id")
            if not project:
                raise InvalidInput("missing", field="project_id")
            if project == row.project:
                return
            if not self._caller.may_see(project):
                raise NotFound(f"no project {project[:200]!r}", field="project_id")
            for table, what in ((RunRow, "runs"), (SamplerRow, "samplers"), (SamplingSessionRow, "sampling sessions")):
                count = select(func.count()).select_from(table).where(table.session_id == session_id)
                if (await db.execute(count)).scalar_one():
                    raise InvalidInput(
                        f"session {session_id} has {what}, which are of project {row.project!r} for ever",
                        field="project_id",
                        hint="assign a session before anything is created in it, or create it with project_id",
                    )
            row.project = (await enter(db, project, self._caller)).project

    async def _from(self, place: Place | None) -> AsyncIterator[control_pb2.Session]:
        """All that the caller may see, newest first, or from a place on."""
        after = None if place is None else await self._position(place)
        while True:
            query = visible(select(SessionRow), self._caller, SessionRow.project)
            if after is not None:
                query = query.where(tuple_(SessionRow.created_at, SessionRow.session_id) < tuple_(*after))
            async with self._db.reading() as db:
                rows = (await db.execute(query.order_by(*_NEWEST).limit(_ROWS_AT_ONCE))).scalars().all()
            for row in rows:
                yield session_message(row)
            if len(rows) < _ROWS_AT_ONCE:
                return
            after = (rows[-1].created_at, rows[-1].session_id)

    async def _position(self, place: Place) -> tuple[float, str]:
        """A session's own time is finer than what is written of it."""
        async with self._db.reading() as db:
            row = await find(db, SessionRow, place.last_session_id, self._caller)
        if row is None:
            raise InvalidInput("it is not one of this search", field="cursor")
        return row.created_at, row.session_id

    async def _summary(self, session: control_pb2.Session, *, now: float) -> SessionSummary:
        records = RunRecords(self._control, self._caller)
        run_ids = await self.runs_of(session.session_id)
        found = await asyncio.gather(*(records.checkpoints(run_id) for run_id in run_ids))
        manifests = [manifest for its in found for manifest in its]
        num_bytes = sum(manifest.size_bytes for manifest in manifests)
        return summary(session, now=now, num_checkpoints=len(manifests), num_bytes=num_bytes)
