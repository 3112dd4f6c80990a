"""Lists by `limit` and `offset`, as the Tinker wire asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from farstep_infra.control.queries import project_of as _project_of
from farstep_infra.gateway.records import Cursor
from farstep_proto.errors import InvalidInput
from farstep_serving.descriptions import query

MAX_LIMIT = 1000
_MAX_OFFSET = 1 << 31
SCOPES = ("owned", "accessible")

LIMIT = query("limit", "how many", type="integer", minimum=0, maximum=MAX_LIMIT)
OFFSET = query("offset", "how many to pass over", type="integer", minimum=0)
SCOPE = query(
    "access_scope", "`accessible`: also what others have made public, where one is named", type="string", enum=[*SCOPES]
)
PROJECT = query("project_id", "of this project alone; absent: of every project that the key may see")


@dataclass(frozen=True, slots=True)
class Window:
    limit: int
    offset: int

    def cursor(self, total: int) -> Cursor:
        return Cursor(offset=self.offset, limit=self.limit, total_count=total)


def window_of(request: Request, *, default: int) -> Window:
    """Raises:
    InvalidInput: naming the parameter.
    """
    return Window(
        _number(request, "limit", default=default, most=MAX_LIMIT),
        _number(request, "offset", default=0, most=_MAX_OFFSET),
    )


def is_accessible(request: Request) -> bool:
    """Whether `access_scope` says so.

    Raises:
        InvalidInput: it is none.
    """
    scope = request.query_params.get("access_scope", "owned")
    if scope not in SCOPES:
        raise InvalidInput(f"{scope[:80]!r} is not one of {', '.join(SCOPES)}", field="access_scope")
    return scope == "accessible"


def project_of(request: Request) -> str:
    """`project_id`, empty for all that the caller may see.

    Raises:
        NotFound: it is not the caller's.
    """
    return _project_of(request, "project_id")


def _number(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) > most:
        raise InvalidInput(f"{text[:80]!r} is not between 0 and {most}", field=name)
    return int(text)
