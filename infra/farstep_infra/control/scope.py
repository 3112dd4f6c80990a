"""What a caller can see: a part of every query, so that what is another project's is looked for, and not found, exactly
as what never was.
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from farstep_infra.control.tables import KeyRow, ProjectRow, RunRow, SamplerRow, SamplingSessionRow, SessionRow
from farstep_serving.keys import Caller

Q = TypeVar("Q", bound=Select[Any])
Row = TypeVar("Row", ProjectRow, KeyRow, SessionRow, RunRow, SamplerRow, SamplingSessionRow)

_MAX_ID = 256


def visible(query: Q, caller: Caller, project: InstrumentedAttribute[str]) -> Q:
    """The part of `query` whose column `project` the caller may see."""
    return query if caller.is_operator else query.where(project == caller.project)


async def find(db: AsyncSession, table: type[Row], ident: str, caller: Caller, *, lock: bool = False) -> Row | None:
    """The row of that id, if there is one that the caller may see.

    Args:
        lock: nobody else changes it until the transaction ends.
    """
    if not is_storable(ident):
        return None
    (primary_key,) = inspect(table).primary_key
    query = visible(select(table).where(primary_key == ident), caller, table.project)
    return (await db.execute(query.with_for_update() if lock else query)).scalar_one_or_none()


def is_storable(text: str) -> bool:
    """Whether there can be such a text in a database: PostgreSQL keeps no NUL."""
    return "\0" not in text and len(text) <= _MAX_ID
