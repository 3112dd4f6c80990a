"""Sampling sessions: what a sampling client samples from, a base model, a checkpoint or a policy by its number.

The row is all there is of one: nothing is loaded for it, and a control plane that is started anew knows it still. But
for how many clients have joined, it never changes, so that those in use are kept at hand. Using one is a sign of life
of its session, be that closed: copies of a sampling client go on in processes of their own. Where no session has given
one for long, housekeeping forgets what it sampled from.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from contextlib import suppress

from sqlalchemy import update

from farstep_infra.control.db import Database, insert_new
from farstep_infra.control.scope import find
from farstep_infra.control.tables import SamplingSessionRow, SessionRow
from farstep_proto.errors import NotFound, Unavailable
from farstep_serving.keys import Caller

_MAX_KNOWN = 10_000
_NOTED_EVERY_S = 3600.0  # far below what housekeeping waits


class SamplingSessions:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: OrderedDict[str, SamplingSessionRow] = OrderedDict()
        self._noted_at: OrderedDict[str, float] = OrderedDict()  # by session, monotonic

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
        """Whoever asks uses it.

        Raises:
            NotFound: there is none that the caller may see.
        """
        row = self._known.get(sampling_session_id)
        if row is None or not caller.may_see(row.project):
            row = await self._find(sampling_session_id, caller)
        await self._note_use(row.session_id)
        return row

    async def _find(self, sampling_session_id: str, caller: Caller) -> SamplingSessionRow:
        async with self._db.reading() as db:
            row = await find(db, SamplingSessionRow, sampling_session_id, caller)
        if row is None:
            raise NotFound(f"no sampling session {sampling_session_id[:300]!r}", field="sampling_session_id")
        self._known[sampling_session_id] = row
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return row

    async def _note_use(self, session_id: str) -> None:
        now = time.monotonic()
        if now < self._noted_at.get(session_id, -math.inf) + _NOTED_EVERY_S:
            return
        self._noted_at[session_id] = now
        while len(self._noted_at) > _MAX_KNOWN:
            self._noted_at.popitem(last=False)
        this = update(SessionRow).where(SessionRow.session_id == session_id).values(last_seen_at=time.time())
        with suppress(Unavailable):  # nobody's sample fails for want of it
            async with self._db.transaction() as db:
                await db.execute(this)

    async def join(self, sampling_session_id: str, *, caller: Caller) -> int:
        """A number that no other client of it has; the one that made it has 0.

        Raises:
            NotFound: there is none that the caller may see.
        """
        await self.get(sampling_session_id, caller=caller)
        this = update(SamplingSessionRow).where(SamplingSessionRow.sampling_session_id == sampling_session_id)
        more = this.values(num_joined=SamplingSessionRow.num_joined + 1).returning(SamplingSessionRow.num_joined)
        async with self._db.transaction() as db:
            number = (await db.execute(more.execution_options(synchronize_session=False))).scalar_one()
        return int(number)


def sampling_session_id_of(session_id: str, number: int) -> str:
    return f"{session_id}:sample:{number}"
