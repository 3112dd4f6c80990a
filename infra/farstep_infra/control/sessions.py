"""Sessions: opened by a ServiceClient, closed by it or after long silence, remembered after.

A closed session takes nothing new, and can still be named as the one to take over from. Trainers and paired
samplers are shared by base model, so taking over means no more than asking for the same base model: the
fleet checks that what it hands out is healthy, and starts afresh otherwise.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control import quotas, requests
from farstep_infra.control.db import Database
from farstep_infra.control.idempotency import Once
from farstep_infra.control.pages import PageRequest, read_page
from farstep_infra.control.projects import enter
from farstep_infra.control.scope import find, visible
from farstep_infra.control.tables import RunRow, SamplingSessionRow, SessionRow
from farstep_proto.errors import NotFound
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import Caller

STATES = ("open", "closed")
_SEEN_NOTED_EVERY_S = 30.0


class Sessions:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(
        self, request: control_pb2.CreateSessionRequest, *, caller: Caller, once: Once
    ) -> control_pb2.Session:
        """Raises:
        InvalidInput: naming the field.
        NotFound: the project is not the caller's, or there never was a session `reuse_from_session_id` in it.
        QuotaExceeded: the project has as many as it may have.
        """
        requests.check_session(request)
        async with self._db.transaction() as db:
            if earlier := await once.answered(db, control_pb2.Session):
                return earlier
            project = await enter(db, request.project, caller)
            reused = request.reuse_from_session_id
            if reused and await find(db, SessionRow, reused, caller) is None:
                raise NotFound(f"no session {reused!r}", field="reuse_from_session_id")
            await quotas.refuse_another(db, project, "max_sessions")
            now = time.time()
            row = SessionRow(
                session_id=f"session-{secrets.token_hex(8)}",
                project=project.project,
                reuse_from_session_id=reused,
                user_metadata=dict(request.user_metadata),
                display_name=request.display_name,
                tags=list(request.tags),
                outcome="",
                outcome_detail="",
                created_at=now,
                last_seen_at=now,
            )
            db.add(row)
            answer = session_message(row)
            await once.keep(db, answer)
        return answer

    async def get(self, session_id: str, *, caller: Caller) -> control_pb2.Session:
        """Also a closed one.

        Raises:
            NotFound: there is none that the caller may see.
        """
        async with self._db.reading() as db:
            return session_message(_found(await find(db, SessionRow, session_id, caller), session_id))

    async def list(
        self, page: PageRequest, *, caller: Caller, project: str = "", state: str = ""
    ) -> control_pb2.ListSessionsResponse:
        """Those that the caller may see, oldest first."""
        query = visible(select(SessionRow), caller, SessionRow.project)
        if project:
            query = query.where(SessionRow.project == project)
        if state:
            closed_at = SessionRow.closed_at
            query = query.where(closed_at.is_(None) if state == "open" else closed_at.is_not(None))
        order = (SessionRow.created_at, SessionRow.session_id)
        async with self._db.reading() as db:
            rows, following = await read_page(db, query, order, page)
        return control_pb2.ListSessionsResponse(sessions=[session_message(row) for row in rows], next_page=following)

    async def heartbeat(
        self, session_id: str, request: control_pb2.HeartbeatRequest, *, caller: Caller
    ) -> control_pb2.Session:
        """Notes that its client lives, every half a minute at most, and with it the sessions of runs that it uses.

        Raises:
            InvalidInput: naming the field.
            NotFound: there is no open one that the caller may see.
        """
        requests.check_heartbeat(request)
        async with self._db.reading() as db:
            row = await find_open(db, session_id, caller)
        now = time.time()
        if row.last_seen_at < now - _SEEN_NOTED_EVERY_S:
            of_runs = visible(select(RunRow.session_id), caller, RunRow.project)
            of_runs = of_runs.where(RunRow.run_id.in_(request.run_ids))
            async with self._db.transaction() as db:
                for used in (SessionRow.session_id == session_id, SessionRow.session_id.in_(of_runs)):
                    await db.execute(update(SessionRow).where(used).values(last_seen_at=now))
            row.last_seen_at = now
        return session_message(row)

    async def close(self, session_id: str, *, caller: Caller, outcome: str = "", detail: str = "") -> None:
        """Again does nothing.

        Args:
            outcome: how its client says that it ended, "success", "errored" or "interrupted", with the `detail`.

        Raises:
            InvalidInput: naming the field.
            NotFound: there is none that the caller may see.
        """
        requests.check_ending(detail)
        async with self._db.transaction() as db:
            row = _found(await find(db, SessionRow, session_id, caller, lock=True), session_id)
            if row.closed_at is None:
                row.closed_at = row.last_seen_at = time.time()
                row.outcome, row.outcome_detail = outcome, detail

    async def close_silent(self, *, silent_s: float) -> Sequence[str]:
        """Closes those whose client has given no sign of life for so long; their ids."""
        now = time.time()
        silent = (SessionRow.closed_at.is_(None), SessionRow.last_seen_at < now - silent_s)
        close = update(SessionRow).where(*silent).values(closed_at=now).returning(SessionRow.session_id)
        async with self._db.transaction() as db:
            return (await db.execute(close)).scalars().all()

    async def forget_sampling(self, *, unused_s: float) -> None:
        """Drops what closed sessions sampled from, where nobody has sampled in their name for so long.

        An open session keeps all: its client may yet ask for the oldest. So does a closed one that others go on
        sampling with, which its `last_seen_at` tells.
        """
        unused = select(SessionRow.session_id).where(
            SessionRow.closed_at.is_not(None), SessionRow.last_seen_at < time.time() - unused_s
        )
        drop = delete(SamplingSessionRow).where(SamplingSessionRow.session_id.in_(unused))
        async with self._db.transaction() as db:
            await db.execute(drop.execution_options(synchronize_session=False))

    async def count(self) -> int:
        async with self._db.reading() as db:
            query = select(func.count()).select_from(SessionRow).where(SessionRow.closed_at.is_(None))
            return (await db.execute(query)).scalar_one()


async def find_open(db: AsyncSession, session_id: str, caller: Caller, *, lock: bool = False) -> SessionRow:
    """Args:
        lock: it stays open until the transaction ends.

    Raises:
        NotFound: there is no open one that the caller may see.
    """
    row = _found(await find(db, SessionRow, session_id, caller, lock=lock), session_id)
    if row.closed_at is not None:
        raise _none(session_id)
    return row


def _found(row: SessionRow | None, session_id: str) -> SessionRow:
    if row is None:
        raise _none(session_id)
    return row


def _none(session_id: str) -> NotFound:
    return NotFound(f"no session {session_id!r}", field="session_id")


def session_message(row: SessionRow) -> control_pb2.Session:
    return control_pb2.Session(
        session_id=row.session_id,
        project=row.project,
        reuse_from_session_id=row.reuse_from_session_id,
        user_metadata=row.user_metadata,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        closed_at=row.closed_at,
        display_name=row.display_name,
        tags=row.tags,
        outcome=row.outcome,
        outcome_detail=row.outcome_detail,
    )
