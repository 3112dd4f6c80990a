"""Sampling sessions: what a sampling client samples from, a base model, a checkpoint or a policy by its number.

The row is all there is of one: nothing is loaded for it, and a control plane that is started anew knows it still.
"""

from __future__ import annotations

import time

from farstep_infra.control.db import Database, insert_new
from farstep_infra.control.scope import find
from farstep_infra.control.tables import SamplingSessionRow
from farstep_proto.errors import NotFound
from farstep_serving.keys import Caller


class SamplingSessions:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def enter(
        self,
        session_id: str,
        number: int,
        *,
        project: str,
        base_model: str,
        model_path: str = "",
        run_id: str = "",
        policy_version: int | None = None,
        kind: str = "snapshot",
    ) -> str:
        """The id of a session's sampling session of that number; entered again, it stays as it was."""
        sampling_session_id = sampling_session_id_of(session_id, number)
        async with self._db.transaction() as db:
            await insert_new(
                db,
                SamplingSessionRow,
                sampling_session_id=sampling_session_id,
                session_id=session_id,
                project=project,
                base_model=base_model,
                model_path=model_path,
                run_id=run_id,
                policy_version=policy_version,
                kind=kind,
                created_at=time.time(),
            )
        return sampling_session_id

    async def get(self, sampling_session_id: str, *, caller: Caller) -> SamplingSessionRow:
        """Raises:
        NotFound: there is none that the caller may see.
        """
        async with self._db.reading() as db:
            row = await find(db, SamplingSessionRow, sampling_session_id, caller)
        if row is None:
            raise NotFound(f"no sampling session {sampling_session_id!r}", field="sampling_session_id")
        return row


def sampling_session_id_of(session_id: str, number: int) -> str:
    return f"{session_id}:sample:{number}"
