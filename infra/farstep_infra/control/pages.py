"""Lists a page at a time. A page begins after the thing that ended the one before it, wherever that is by then: what
comes or goes meanwhile moves nothing from one page to another.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from farstep_infra.control.scope import is_storable
from farstep_infra.control.tables import Base
from farstep_proto.errors import InvalidInput

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

T = TypeVar("T", bound=Base)
R = TypeVar("R")
Q = TypeVar("Q", bound=Select[Any])
Column = InstrumentedAttribute[Any]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page: `token` is empty or an earlier `next_page` of the same list."""

    token: str = ""
    limit: int = DEFAULT_LIMIT


def page_request(token: str, limit: str) -> PageRequest:
    """From the query parameters `page` and `limit`, which may be empty.

    Raises:
        InvalidInput: naming the field.
    """
    if not limit:
        return PageRequest(token)
    if not (limit.isascii() and limit.isdigit() and len(limit) < 8) or not 1 <= int(limit) <= MAX_LIMIT:
        raise InvalidInput(f"{limit!r} is not between 1 and {MAX_LIMIT}", field="limit")
    return PageRequest(token, int(limit))


async def read_page(
    db: AsyncSession, query: Select[T], order: Sequence[Column], asked: PageRequest
) -> tuple[Sequence[T], str]:
    """One page of a table's rows in ascending `order`, and the token of the next one, empty after the last.

    Args:
        order: columns of text or number, which together are unique.

    Raises:
        InvalidInput: the token is not one of such a list.
    """
    rows = (await db.execute(begun_after(query, order, asked))).scalars().all()
    return cut(rows, asked, lambda row: [getattr(row, column.key) for column in order])


def begun_after(query: Q, order: Sequence[Column], asked: PageRequest) -> Q:
    """The query of what is on a page, with one more, by which to see whether there is another page."""
    if asked.token:
        after = _decoded(asked.token, [column.type.python_type for column in order])
        query = query.where(tuple_(*order) > tuple_(*after))
    return query.order_by(*order).limit(asked.limit + 1)


def cut(rows: Sequence[R], asked: PageRequest, place: Callable[[R], Sequence[Any]]) -> tuple[Sequence[R], str]:
    """The page, and the token of the next one. `place` gives the values of the ordering columns."""
    here = rows[: asked.limit]
    return here, _encoded(place(here[-1])) if len(rows) > len(here) else ""


def _encoded(place: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(place), separators=(",", ":")).encode()).decode().rstrip("=")


def _decoded(token: str, kinds: Sequence[type]) -> list[Any]:
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        place = json.loads(text)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise _foreign(token) from error
    if not isinstance(place, list) or len(place) != len(kinds):
        raise _foreign(token)
    if not all(_is_a(kind, value) for kind, value in zip(kinds, place, strict=True)):
        raise _foreign(token)
    return place


def _is_a(kind: type, value: object) -> bool:
    match value:
        case str():
            return kind is str and is_storable(value)
        case float():
            return kind is float and math.isfinite(value)
    return False


def _foreign(token: str) -> InvalidInput:
    return InvalidInput(f"{token[:80]!r} is not a page of this list", field="page")
