"""Usage: what projects and runs have used, day by day, added up from what trainers and samplers report.

A server reports totals since it began, under a name that it has until it ends. What is added is how much they have
grown since that server's last report, so that a report may come twice, late, or after a pause: each token counts once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control.db import Database, insert_new
from farstep_infra.control.pages import PageRequest, begun_after, cut
from farstep_infra.control.scope import is_storable, visible
from farstep_infra.control.tables import DEFAULT_PROJECT, ReportedUsageRow, RunRow, SessionRow, UsageRow
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import Caller

COUNTERS = (
    "num_operations",
    "tokens_forward",
    "tokens_trained",
    "num_samples",
    "tokens_prompted",
    "tokens_sampled",
    "trainer_seconds",
    "sampler_seconds",
)
GROUPINGS = ("project", "run")
REMEMBERED_S = 30 * 24 * 3600.0  # of a server that reports nothing any more
_MAX_COUNT = 1 << 62
_NOTED_EVERY_S = 24 * 3600.0

Totals = dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Period:
    """Days (UTC), both included; an empty one is without end."""

    since: str = ""
    until: str = ""


@dataclass(frozen=True, slots=True)
class DayUsage:
    """The tokens of a run on one day (UTC); without a run id, those of what no run did.

    What the run is of is absent where no table knows the run.
    """

    day: str
    project: str
    run_id: str
    tokens_forward: int
    tokens_trained: int
    tokens_prompted: int
    tokens_sampled: int
    base_model: str | None
    session_id: str | None
    user_metadata: Mapping[str, str] | None  # its session's


def period(since: str, until: str) -> Period:
    """From query parameters, which may be empty.

    Raises:
        InvalidInput: naming the field.
    """
    return Period(_day(since, field="since"), _day(until, field="until"))


class UsageLedger:
    def __init__(self, db: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self._clock = clock

    async def add(self, instance_id: str, reported: Iterable[control_pb2.Usage]) -> None:
        """Takes totals that a server has reported since it began; all of them or, where that raises, none.

        Args:
            instance_id: of that server, another one each time that it is started.

        Raises:
            InvalidInput: naming the field.
        """
        if not instance_id or not is_storable(instance_id):
            raise InvalidInput("missing, or no name", field="instance_id")
        totals = _by_owner(reported)
        if not totals:
            return
        async with self._db.transaction() as db:
            for (project, run_id), total in sorted(totals.items()):  # in one order, so that no two wait for each other
                await self._add_one(db, (instance_id, project, run_id), total)

    async def list(
        self, page: PageRequest, *, caller: Caller, project: str = "", run_id: str = "", within: Period, by: str
    ) -> control_pb2.ListUsageResponse:
        """Sums over the period of what the caller may see, by project or by run."""
        key = [UsageRow.project] if by == "project" else [UsageRow.project, UsageRow.run_id]
        sums = [func.sum(getattr(UsageRow, counter)) for counter in COUNTERS]
        summed: Any = select(*key, *sums).group_by(*key)  # the types of its columns are not worth their names
        query: Any = visible(summed, caller, UsageRow.project)
        if project:
            query = query.where(UsageRow.project == project)
        if run_id:
            query = query.where(UsageRow.run_id == run_id)
        if within.since:
            query = query.where(UsageRow.day >= within.since)
        if within.until:
            query = query.where(UsageRow.day <= within.until)
        async with self._db.reading() as db:
            found = (await db.execute(begun_after(query, key, page))).all()
        rows, following = cut(found, page, lambda row: row[: len(key)])
        return control_pb2.ListUsageResponse(usage=[_to_proto(row, len(key)) for row in rows], next_page=following)

    async def days(self, *, caller: Caller, since: str, until: str) -> Sequence[DayUsage]:
        """What the caller may see of these days, both included, each by itself."""
        table, run = UsageRow, RunRow
        columns: Any = (table.day, table.project, table.run_id)  # their types are those of `DayUsage`
        columns += (table.tokens_forward, table.tokens_trained, table.tokens_prompted, table.tokens_sampled)
        columns += (run.base_model, run.session_id, SessionRow.user_metadata)
        found = select(*columns).outerjoin(run, run.run_id == table.run_id)
        query: Any = found.outerjoin(SessionRow, SessionRow.session_id == run.session_id)
        query = visible(query, caller, table.project).where(table.day >= since, table.day <= until)
        order = (UsageRow.day, UsageRow.project, UsageRow.run_id)
        async with self._db.reading() as db:
            return [DayUsage(*row) for row in (await db.execute(query.order_by(*order))).all()]

    async def forget_ended(self) -> None:
        """Forgets the last totals of servers that have reported nothing for long; what they used stays."""
        async with self._db.transaction() as db:
            long_ago = self._clock() - REMEMBERED_S
            await db.execute(delete(ReportedUsageRow).where(ReportedUsageRow.reported_at < long_ago))

    async def _add_one(self, db: AsyncSession, source: tuple[str, str, str], total: Totals) -> None:
        instance_id, project, run_id = source
        now = self._clock()
        await insert_new(db, ReportedUsageRow, instance_id=instance_id, project=project, run_id=run_id, reported_at=now)
        last = await db.get_one(ReportedUsageRow, source, with_for_update=True)
        grown = {name: value - getattr(last, name) for name, value in total.items() if value > getattr(last, name)}
        if grown or last.reported_at < now - _NOTED_EVERY_S:
            last.reported_at = now
        if not grown:
            return
        for name in grown:
            setattr(last, name, total[name])
        day = datetime.fromtimestamp(now, UTC).date().isoformat()
        await insert_new(db, UsageRow, day=day, project=project, run_id=run_id)
        this = (UsageRow.day == day, UsageRow.project == project, UsageRow.run_id == run_id)
        added = {name: getattr(UsageRow, name) + value for name, value in grown.items()}
        await db.execute(update(UsageRow).where(*this).values(**added).execution_options(synchronize_session=False))


def _by_owner(reported: Iterable[control_pb2.Usage]) -> dict[tuple[str, str], Totals]:
    totals: dict[tuple[str, str], Totals] = {}
    for usage in reported:
        owner = (usage.project or DEFAULT_PROJECT, usage.run_id)
        if not all(is_storable(name) for name in owner):
            raise InvalidInput("no name", field="usage.project")
        total = totals.setdefault(owner, dict.fromkeys(COUNTERS, 0))
        for counter in COUNTERS:
            value = getattr(usage, counter)
            if not (math.isfinite(value) and 0 <= value <= _MAX_COUNT):
                raise InvalidInput(f"{value} is no total", field=f"usage.{counter}")
            total[counter] += value
    return totals


def _to_proto(row: Sequence[Any], num_keys: int) -> control_pb2.Usage:
    kinds = (int, int, int, int, int, int, float, float)  # PostgreSQL adds integers up to decimals
    counts = {name: kind(value) for name, kind, value in zip(COUNTERS, kinds, row[num_keys:], strict=True)}
    return control_pb2.Usage(project=row[0], run_id=row[1] if num_keys == 2 else "", **counts)


def _day(text: str, *, field: str) -> str:
    if not text:
        return ""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise InvalidInput(f"{text!r} is not a day like 2026-01-31", field=field) from error
