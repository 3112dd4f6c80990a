"""What a project may have at once, asked in the transaction that adds to it, which holds the project's row: two who ask
at once are answered one after the other.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control.tables import ProjectRow, RunRow, SamplerRow, SessionRow
from farstep_proto.errors import InvalidInput, QuotaExceeded
from farstep_proto.v1 import control_pb2

NAMES = ("max_sessions", "max_runs", "max_samplers", "max_trainer_replicas", "max_sampler_replicas")
ENDED = ("failed", "deleted")

Counted = Literal["max_sessions", "max_runs", "max_samplers"]
Replicas = Literal["max_trainer_replicas", "max_sampler_replicas"]
_THINGS: dict[Counted, str] = {"max_sessions": "open sessions", "max_runs": "runs", "max_samplers": "fresh samplers"}


async def refuse_another(db: AsyncSession, project: ProjectRow, quota: Counted) -> None:
    """Raises:
    QuotaExceeded: the project has as many as it may have.
    """
    limit = getattr(project, quota)
    if limit is None:
        return
    used = (await live(db, project.project))[quota]
    if used >= limit:
        raise QuotaExceeded(
            f"project {project.project!r} has {used} {_THINGS[quota]} and may have {limit}",
            field=f"quotas.{quota}",
            hint="end one that is not needed, or ask an operator for more",
        )


def refuse_replicas(project: ProjectRow, quota: Replicas, count: int) -> None:
    """Raises:
    QuotaExceeded: more than one run or sampler of the project may have.
    """
    limit = getattr(project, quota)
    if limit is not None and count > limit:
        what = "trainer" if quota == "max_trainer_replicas" else "sampler"
        raise QuotaExceeded(
            f"{count} {what} replicas; project {project.project!r} may have {limit} at once", field=f"quotas.{quota}"
        )


async def live(db: AsyncSession, project: str) -> dict[Counted, int]:
    """How many of each it has."""
    queries: dict[Counted, Select[int]] = {
        "max_sessions": _count(SessionRow).where(SessionRow.project == project, SessionRow.closed_at.is_(None)),
        "max_runs": _count(RunRow).where(RunRow.project == project, RunRow.state.not_in(ENDED)),
        "max_samplers": _count(SamplerRow).where(SamplerRow.project == project, SamplerRow.state.not_in(ENDED)),
    }
    return {quota: (await db.execute(query)).scalar_one() for quota, query in queries.items()}


def describe(used: dict[Counted, int]) -> str:
    """Those that there are, in words; empty where there are none."""
    return ", ".join(f"{count} {_THINGS[quota]}" for quota, count in used.items() if count)


def check(quotas: control_pb2.Quotas) -> dict[str, int | None]:
    """By name, None for what is without limit.

    Raises:
        InvalidInput: naming the field.
    """
    limits = {name: getattr(quotas, name) if quotas.HasField(name) else None for name in NAMES}
    for name, limit in limits.items():
        if limit is not None and limit < 0:
            raise InvalidInput(f"{limit} is negative", field=f"quotas.{name}")
    return limits


def _count(table: type[SessionRow | RunRow | SamplerRow]) -> Select[int]:
    return select(func.count()).select_from(table)
