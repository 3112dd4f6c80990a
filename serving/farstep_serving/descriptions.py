"""What a route takes, gives and refuses, declared beside its handler; `openapi` makes a document of it.

    @describe("Open a session", takes=control_pb2.CreateSessionRequest, gives=control_pb2.Session, status=201)
    async def _create_session(request: Request) -> Response: ...

A declaration changes nothing in what the handler does. What follows from the route itself is not declared: its path
parameters, that it needs a key, that a body may be malformed (400) or too large (413).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from google.protobuf.message import Message

from farstep_proto import paths
from farstep_proto.errors import ApiError
from farstep_proto.v1 import common_pb2

H = TypeVar("H", bound=Callable[..., Any])
Schema = Mapping[str, Any]

_ATTRIBUTE = "__farstep_description__"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or header."""

    name: str
    where: Literal["query", "header"]
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})
    required: bool = False


@dataclass(frozen=True, slots=True)
class Media:
    """A body that is no message of ours: its media types, each with a JSON schema (empty: any bytes).

    Args:
        definitions: schemas that it refers to, as `#/components/schemas/<name>`.
    """

    types: Mapping[str, Schema]
    definitions: Mapping[str, Schema] = field(default_factory=dict)


Body = type[Message] | Media


@dataclass(frozen=True, slots=True)
class Description:
    """
    Args:
        takes: the request's body; of a route whose last path parameter says what it takes, one for each value of it.
        errors: those that the route's nature does not imply.
        error: the form of errors, where it is not an `Error`.
    """

    summary: str
    takes: Body | Mapping[str, Body] | None = None
    gives: Body = common_pb2.Empty
    status: int = 200
    parameters: Sequence[Parameter] = ()
    errors: Sequence[type[ApiError]] = ()
    error: Body = common_pb2.Error


def describe(
    summary: str,
    *,
    takes: Body | Mapping[str, Body] | None = None,
    gives: Body = common_pb2.Empty,
    status: int = 200,
    parameters: Sequence[Parameter] = (),
    errors: Sequence[type[ApiError]] = (),
    error: Body = common_pb2.Error,
) -> Callable[[H], H]:
    """Marks a handler; the arguments are those of `Description`. A summary is unique in a server."""
    description = Description(summary, takes, gives, status, parameters, errors, error)

    def mark(handler: H) -> H:
        setattr(handler, _ATTRIBUTE, description)
        return handler

    return mark


def description_of(handler: Callable[..., Any]) -> Description | None:
    return getattr(handler, _ATTRIBUTE, None)


def query(name: str, description: str, *, required: bool = False, **schema: Any) -> Parameter:
    """A query parameter, with keywords of JSON schema (`type="string"` if none are given)."""
    return Parameter(name, "query", description, schema or {"type": "string"}, required)


def header(name: str, description: str, **schema: Any) -> Parameter:
    return Parameter(name, "header", description, schema or {"type": "string"})


WAIT_S = query(
    "wait_s", "seconds to wait at most for a change; more than the server's most is cut", type="number", minimum=0
)
PAGE = query("page", "`next_page` of the answer before; absent: the first page")
CLIENT = header(paths.CLIENT_ID, "who submits, and will poll for the outcome")
