"""The parameters that lists and creations have in common: described, and checked."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from farstep_infra.control.pages import DEFAULT_LIMIT, MAX_LIMIT, PageRequest, page_request
from farstep_infra.control.scope import is_storable
from farstep_proto import paths
from farstep_proto.errors import InvalidInput, NotFound
from farstep_serving.descriptions import PAGE, Parameter, header, query
from farstep_serving.keys import caller_of

LIMIT = query("limit", "things a page", type="integer", minimum=1, maximum=MAX_LIMIT, default=DEFAULT_LIMIT)
PROJECT = query("project", "of this project alone; absent: of every project that the key may see")
PAGES = (PAGE, LIMIT)
LISTS = (*PAGES, PROJECT)
ONCE = header(
    paths.IDEMPOTENCY_KEY,
    "the same key with the same request within 24 hours has the same answer; with another it is refused",
    type="string",
    minLength=1,
    maxLength=200,
)


def state_in(states: Sequence[str]) -> Parameter:
    return query("state", "in this state alone", type="string", enum=list(states))


def page_of(request: Request) -> PageRequest:
    """`page` and `limit`.

    Raises:
        InvalidInput: naming the parameter.
    """
    return page_request(request.query_params.get("page", ""), request.query_params.get("limit", ""))


def project_of(request: Request, name: str = "project") -> str:
    """The project that a parameter names, empty for all that the caller may see.

    Raises:
        NotFound: it is not the caller's.
        InvalidInput: naming the parameter.
    """
    project = text_of(request, name)
    if project and not caller_of(request).may_see(project):
        raise NotFound(f"no project {project!r}", field=name)
    return project


def one_of(request: Request, name: str, choices: Sequence[str], *, default: str = "") -> str:
    """A parameter that is one of `choices`, or `default` where it is empty.

    Raises:
        InvalidInput: naming the parameter.
    """
    value = request.query_params.get(name, "")
    if value and value not in choices:
        raise InvalidInput(f"{value[:80]!r} is not one of {', '.join(choices)}", field=name)
    return value or default


def text_of(request: Request, name: str) -> str:
    """Raises:
    InvalidInput: naming the parameter.
    """
    text = request.query_params.get(name, "")
    if not is_storable(text):
        raise InvalidInput("there is nothing of such a name", field=name)
    return text
