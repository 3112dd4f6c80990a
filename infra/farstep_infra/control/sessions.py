"""Sessions: opened by a ServiceClient, closed by it, remembered after.

A closed session takes nothing new, and can still be named as the one to take over from. Trainers and paired
samplers are shared by base model, so taking over means no more than asking for the same base model: the
fleet checks that what it hands out is healthy, and starts afresh otherwise.
"""

from __future__ import annotations

import secrets
import time

from sqlalchemy import func, select

from farstep_infra.control import requests
from farstep_infra.control.db import Database, SessionRow
from farstep_proto.errors import NotFound
from farstep_proto.v1 import control_pb2


class Sessions:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, request: control_pb2.CreateSessionRequest) -> control_pb2.Session:
        """Raises:
        InvalidInput: naming the field.
        NotFound: there never was a session `reuse_from_session_id`.
        """
        requests.check_session(request)
        row = SessionRow(
            session_id=f"session-{secrets.token_hex(8)}",
            project=request.project,
            reuse_from_session_id=request.reuse_from_session_id,
            user_metadata=dict(request.user_metadata),
        )
        async with self._db.transaction() as db:
            if row.reuse_from_session_id and await db.get(SessionRow, row.reuse_from_session_id) is None:
                raise NotFound(f"no session {row.reuse_from_session_id!r}", field="reuse_from_session_id")
            db.add(row)
        return _to_proto(row)

    async def get(self, session_id: str) -> control_pb2.Session:
        """An open one.

        Raises:
            NotFound: there is none.
        """
        async with self._db.transaction() as db:
            return _to_proto(_open(await db.get(SessionRow, session_id), session_id))

    async def close(self, session_id: str) -> None:
        """Raises:
        NotFound: there is no open one.
        """
        async with self._db.transaction() as db:
            _open(await db.get(SessionRow, session_id), session_id).closed_at = time.time()

    async def count(self) -> int:
        async with self._db.transaction() as db:
            query = select(func.count()).select_from(SessionRow).where(SessionRow.closed_at.is_(None))
            return (await db.execute(query)).scalar_one()


def _open(row: SessionRow | None, session_id: str) -> SessionRow:
    if row is None or row.closed_at is not None:
        raise NotFound(f"no session {session_id!r}", field="session_id")
    return row


def _to_proto(row: SessionRow) -> control_pb2.Session:
    return control_pb2.Session(
        session_id=row.session_id,
        project=row.project,
        reuse_from_session_id=row.reuse_from_session_id,
        user_metadata=row.user_metadata,
        created_at=row.created_at,
    )
