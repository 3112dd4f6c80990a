"""Who has a use for a stack, as the database knows it: sessions whose clients live, by their runs and samplers."""

from __future__ import annotations

from sqlalchemy import func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from farstep_infra.control.db import Database
from farstep_infra.control.tables import RunRow, SamplerRow, SessionRow

_NEEDING = ("provisioning", "ready")


class Uses:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def last_seen(self, stack_id: str) -> float:
        """When a client that needs that stack last gave a sign of life, in seconds since the epoch; 0.0: never."""
        return await self._newest(RunRow.stack_id == stack_id, SamplerRow.stack_id == stack_id)

    async def last_seen_but(self, stack_id: str, *, run_id: str) -> float:
        """The same of all but those who need it for one run."""
        return await self._newest(
            (RunRow.stack_id == stack_id) & (RunRow.run_id != run_id), SamplerRow.stack_id == stack_id
        )

    async def live_stacks(self, *, since: float) -> set[str]:
        """The ids of stacks that clients need who have been seen since then.

        A session that was closed lives as long as somebody else's heartbeats name one of its runs.
        """
        is_used = or_(SessionRow.closed_at.is_(None), SessionRow.last_seen_at > SessionRow.closed_at)
        lives = (is_used, SessionRow.last_seen_at >= since)
        found: set[str] = set()
        async with self._db.reading() as db:
            for table in (RunRow, SamplerRow):
                query = select(table.stack_id).join(SessionRow, SessionRow.session_id == table.session_id)
                rows = await db.execute(query.where(table.state.in_(_NEEDING), *lives).distinct())
                found |= {stack_id for stack_id in rows.scalars() if stack_id}
        return found

    async def known_stacks(self) -> set[str]:
        """The ids of all stacks that some run or sampler is on, or was."""
        async with self._db.reading() as db:
            runs = (await db.execute(select(RunRow.stack_id).distinct())).scalars().all()
            samplers = (await db.execute(select(SamplerRow.stack_id).distinct())).scalars().all()
        return {stack_id for stack_id in (*runs, *samplers) if stack_id}

    async def _newest(self, of_runs: ColumnElement[bool], of_samplers: ColumnElement[bool]) -> float:
        seen_at = func.max(SessionRow.last_seen_at)
        newest = 0.0
        async with self._db.reading() as db:
            for table, which in ((RunRow, of_runs), (SamplerRow, of_samplers)):
                query = select(seen_at).join(table, SessionRow.session_id == table.session_id)
                newest = max(newest, (await db.execute(query.where(table.state.in_(_NEEDING), which))).scalar() or 0.0)
        return newest
