"""The application shell: a route table in, a Starlette app with keys, errors and operations out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from farstep_proto import paths
from farstep_proto.errors import ApiError, InvalidInput, NotFound
from farstep_proto.v1 import operations_pb2
from farstep_serving.bodies import MAX_BODY_BYTES, Bodies, BodyLimits
from farstep_serving.descriptions import WAIT_S, describe
from farstep_serving.keys import Caller, Keys, RequireKey, authorization_of, caller_of
from farstep_serving.messages import ErrorResponse, read_message, respond, respond_error, wait_s_of
from farstep_serving.openapi import OpenApi
from farstep_serving.operations import MAX_POLL_S, OperationTable

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def make_app(
    routes: Sequence[BaseRoute],
    *,
    keys: Keys,
    lifespan: Lifespan | None = None,
    open_paths: frozenset[str] = frozenset(),
    error_response: ErrorResponse = respond_error,
    credential_of: Callable[[Request], str] = authorization_of,
    title: str = "Farstep",
    body_limits: BodyLimits | None = None,
) -> Starlette:
    """An app whose every route but `open_paths` needs a key; it describes itself at `paths.OPENAPI`.

    Args:
        error_response: the form of every error; an `Error` message unless some routes have a form of their own.
        credential_of: what `keys` is shown of a request.
    """

    async def respond_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        ours = NotFound(f"no route {where}") if error.status_code == 404 else InvalidInput(f"{where}: {error.detail}")
        response = await error_response(request, ours)
        response.status_code = error.status_code
        return response

    open_paths |= {paths.HEALTH, paths.OPENAPI}
    openapi = OpenApi(title, open_paths)
    openapi.routes = [*routes, openapi.route()]
    app = Starlette(
        routes=openapi.routes,
        lifespan=lifespan,
        middleware=[
            Middleware(
                RequireKey,
                keys=keys,
                open_paths=open_paths,
                error_response=error_response,
                credential_of=credential_of,
            )
        ],
        exception_handlers={
            ApiError: error_response,
            HTTPException: respond_http_error,
            Exception: error_response,
        },
    )
    app.router.redirect_slashes = False  # a path that is none is a 404 with an `Error`
    app.state.bodies = Bodies(body_limits)
    return app


def operation_routes(
    table: OperationTable,
    *,
    cancel: Callable[[str], bool | Awaitable[bool]],
    known_as: Callable[[Caller, str], str] = Caller.named,
) -> list[Route]:
    """Poll, look at and cancel operations.

    Args:
        cancel: drops a queued one and says, now or soon, whether it did.
        known_as: under which id the table has the operation that a caller means, whose own id follows the last `/`
            of it; one that the table cannot have, for an operation that the caller may not know of.
    """

    @describe("Hear of finished operations", takes=operations_pb2.PollRequest, gives=operations_pb2.PollResponse)
    async def poll(request: Request) -> Response:
        message = await read_message(request, operations_pb2.PollRequest, limit=MAX_BODY_BYTES)
        if not message.client_id:
            raise InvalidInput("missing", field="client_id")
        if not message.wait_s >= 0:  # a timer of NaN seconds would put all timers out of order
            raise InvalidInput(f"{message.wait_s} is not a number of seconds", field="wait_s")
        caller = caller_of(request)
        asked = operations_pb2.PollRequest(
            client_id=caller.named(message.client_id),
            ack=[known_as(caller, operation_id) for operation_id in message.ack],
            check=[known_as(caller, operation_id) for operation_id in message.check],
            held=[known_as(caller, operation_id) for operation_id in message.held],
            wait_s=message.wait_s,
        )
        answer = await table.poll(asked)
        for operation in answer.finished:
            operation.operation_id = _own_id(operation.operation_id)
        answer.unknown[:] = map(_own_id, answer.unknown)
        return respond(request, answer)

    async def look(request: Request, *, wait_s: float) -> tuple[str, operations_pb2.Operation]:
        given = request.path_params["operation_id"]
        operation_id = known_as(caller_of(request), given)
        try:
            operation = await table.wait(operation_id, wait_s)
        except NotFound:
            raise NotFound(f"no operation {given!r}", field="operation_id") from None
        operation.operation_id = given
        return operation_id, operation

    @describe("Look at an operation", gives=operations_pb2.Operation, parameters=[WAIT_S])
    async def get(request: Request) -> Response:
        _, operation = await look(request, wait_s=wait_s_of(request, most=MAX_POLL_S))
        return respond(request, operation)

    @describe("Cancel an operation that is queued", gives=operations_pb2.CancelResponse)
    async def cancel_one(request: Request) -> Response:
        operation_id, _ = await look(request, wait_s=0)
        dropped = table.is_queued(operation_id) and cancel(operation_id)
        cancelled = dropped if isinstance(dropped, bool) else await dropped
        if cancelled and table.is_pending(operation_id):  # its run may have been deleted meanwhile
            table.cancel(operation_id)
        return respond(request, operations_pb2.CancelResponse(cancelled=cancelled))

    return [
        Route(paths.POLL, poll, methods=["POST"]),
        Route(paths.CANCEL, cancel_one, methods=["POST"]),
        Route(paths.OPERATION, get, methods=["GET"]),
    ]


def _own_id(operation_id: str) -> str:
    """As its client calls it."""
    return operation_id.rpartition("/")[2]
