"""Lists that a server tells in pages, as a whole. Lives on the background loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from farstep._connection import Connection
from farstep.errors import ServerError

I = TypeVar("I")  # noqa: E741 - an item
P = TypeVar("P", bound=Message)


async def items(
    connection: Connection,
    path: str,
    page: type[P],
    items_of: Callable[[P], Sequence[I]],
    *,
    params: Mapping[str, str] | None = None,
    budget_s: float | None = None,
) -> list[I]:
    """The items of every page, in their order.

    Raises:
        ServerError: the server names a page that it has given already, and so would never end.
    """
    found: list[I] = []
    query, seen = dict(params or {}), {""}
    while True:
        got: Any = await connection.call("GET", path, page, params=query, budget_s=budget_s)
        found += items_of(got)
        if not got.next_page:
            return found
        if got.next_page in seen:
            raise ServerError(f"{connection.url} tells the same page of {path} again")
        seen.add(got.next_page)
        query["page"] = got.next_page
