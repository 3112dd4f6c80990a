"""An OpenAPI 3.1 document of a server: from its route table, what is declared beside the handlers, and the messages.

It is made when it is first asked for, never written by hand. A route without a declaration is left out; `undescribed`
finds those, and a test has none of them in any server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from farstep_proto import paths
from farstep_proto.errors import (
    ApiError,
    BodyTimeout,
    Forbidden,
    InvalidInput,
    NotFound,
    PayloadTooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedEncoding,
)
from farstep_proto.names import KINDS
from farstep_serving.descriptions import Body, Description, Media, Parameter, describe, description_of
from farstep_serving.json_schema import REF, schemas_of

_KEY = "key"
_MESSAGE_NAME = "x-protobuf-message"  # of a body's schema: which message it is
_NAME = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[A-Za-z0-9._-]+$"}
_RUN_ID = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[A-Za-z0-9_:.-]+$"}
_PATH_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "run_id": _RUN_ID,
    "name": _NAME,
    "file": {**_NAME, "maxLength": 255},
    "kind": {"type": "string", "enum": list(KINDS)},
}
_DEFAULT_PATH_PARAMETER = {"type": "string", "minLength": 1}
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 0}}}


@dataclass(slots=True)
class OpenApi:
    """The document of one server, and the route that hands it out.

    Args:
        routes: all of the server's, its own among them.
        open_paths: those that need no key.
    """

    title: str
    open_paths: frozenset[str]
    routes: Sequence[BaseRoute] = ()
    _document: dict[str, Any] | None = field(default=None, init=False)

    def route(self) -> Route:
        return Route(paths.OPENAPI, self._get, methods=["GET"])

    @describe("This document", gives=Media({paths.JSON: {"type": "object"}}))
    async def _get(self, request: Request) -> Response:
        if self._document is None:
            self._document = document(self.routes, title=self.title, open_paths=self.open_paths)
        return JSONResponse(self._document)


def document(routes: Iterable[BaseRoute], *, title: str, open_paths: frozenset[str]) -> dict[str, Any]:
    """The document of these routes; `open_paths` are templates, as of a route."""
    schemas: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for route, description in _described(routes):
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for place, takes in _places(path, description.takes):
            methods = sorted((route.methods or set()) - {"HEAD"})
            for method in methods:
                operation = _operation(place, description, takes, schemas, is_open=route.path in open_paths)
                found.setdefault(place, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version("farstep")},
        "paths": found,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
        "security": [{_KEY: []}],
    }


def undescribed(routes: Iterable[BaseRoute]) -> list[str]:
    """What the document lacks."""
    described = {id(route) for route, _ in _described(routes)}
    return [str(route) for route in routes if id(route) not in described]


def _described(routes: Iterable[BaseRoute]) -> Iterator[tuple[Route, Description]]:
    for route in routes:
        description = description_of(route.endpoint) if isinstance(route, Route) else None
        if isinstance(route, Route) and description is not None:
            yield route, description


def _places(path: str, takes: Body | Mapping[str, Body] | None) -> Iterator[tuple[str, Body | None]]:
    """The paths that a route stands for, each with its body."""
    if not isinstance(takes, Mapping):
        yield path, takes
        return
    for value, body in takes.items():
        yield re.sub(r"{\w+}$", value, path), body


def _operation(
    path: str, description: Description, takes: Body | None, schemas: dict[str, Any], *, is_open: bool
) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    value = re.search(r"/(\w+)$", path) if isinstance(description.takes, Mapping) else None
    summary = f"{description.summary}: {value[1]}" if value else description.summary
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": re.sub(r"\W+", "_", summary.lower()),
        "parameters": [*map(_path_parameter, names), *map(_parameter, description.parameters)],
        "responses": {
            str(description.status): {"description": "done", **_body(description.gives, schemas)},
            **_errors(description, has_body=takes is not None, has_names=bool(names), is_open=is_open, schemas=schemas),
        },
    }
    if takes is not None:
        operation["requestBody"] = {"required": isinstance(takes, Media), **_body(takes, schemas)}
    if is_open:
        operation["security"] = []
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    schema = _PATH_PARAMETERS.get(name, _DEFAULT_PATH_PARAMETER)
    return {"name": name, "in": "path", "required": True, "schema": dict(schema)}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required,
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _body(body: Body, schemas: dict[str, Any]) -> dict[str, Any]:
    if isinstance(body, Media):
        schemas.update(body.definitions)
        return {"content": {name: {"schema": dict(schema)} for name, schema in body.types.items()}}
    schemas.update(schemas_of(body))
    binary = {"format": "binary", "type": "string", _MESSAGE_NAME: body.DESCRIPTOR.full_name}
    return {
        "content": {
            paths.JSON: {"schema": {"$ref": REF + body.DESCRIPTOR.name}},
            paths.PROTOBUF: {"schema": binary},
        }
    }


def _errors(
    description: Description, *, has_body: bool, has_names: bool, is_open: bool, schemas: dict[str, Any]
) -> dict[str, Any]:
    implied: list[type[ApiError]] = [InvalidInput]
    implied += [] if is_open else [Unauthenticated, Forbidden, Unavailable]  # whose key it is, elsewhere
    implied += [BodyTimeout, PayloadTooLarge, UnsupportedEncoding, TooManyRequests] if has_body else []
    implied += [NotFound] if has_names else []
    by_status: dict[int, set[str]] = {}
    for error in (*implied, *description.errors):
        by_status.setdefault(error.status, set()).add(error.error_class)
    body = _body(description.error, schemas)
    found: dict[str, Any] = {
        str(status): {"description": ", ".join(sorted(names)), **(_with_retry(status)), **body}
        for status, names in sorted(by_status.items())
    }
    return {**found, "5XX": {"description": "the server cannot, or made a mistake", "headers": _RETRY_AFTER, **body}}


def _with_retry(status: int) -> dict[str, Any]:
    return {"headers": _RETRY_AFTER} if status in (425, 429) else {}
