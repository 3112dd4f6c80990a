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
from farstep_serving.keys import Keys, RequireKey
from farstep_serving.messages import ErrorResponse, read_message, respond, respond_error, wait_s_of
from farstep_serving.operations import MAX_POLL_S, OperationTable

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def make_app(
    routes: Sequence[BaseRoute],
    *,
    keys: Keys,
    lifespan: Lifespan | None = None,
    open_paths: frozenset[str] = frozenset(),
    error_response: ErrorResponse = respond_error,
) -> Starlette:
    """An app whose every route but `open_paths` needs a key.

    Args:
        error_response: the form of every error; an `Error` message unless some routes have a form of their own.
    """

    async def respond_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        where = f"{request.method} {request.url.path}"
        ours = NotFound(f"no route {where}") if error.status_code == 404 else InvalidInput(f"{where}: {error.detail}")
        response = await error_response(request, ours)
        response.status_code = error.status_code
        return response

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(RequireKey, keys=keys, open_paths=open_paths, error_response=error_response)],
        exception_handlers={
            ApiError: error_response,
            HTTPException: respond_http_error,
            Exception: error_response,
        },
    )


def operation_routes(table: OperationTable, *, cancel: Callable[[str], bool | Awaitable[bool]]) -> list[Route]:
    """Poll, look at and cancel operations. `cancel` drops a queued one and says, now or soon, whether it did."""

    async def poll(request: Request) -> Response:
        message = await read_message(request, operations_pb2.PollRequest)
        if not message.client_id:
            raise InvalidInput("missing", field="client_id")
        return respond(request, await table.poll(message))

    async def get(request: Request) -> Response:
        wait_s = wait_s_of(request, most=MAX_POLL_S)
        return respond(request, await table.wait(request.path_params["operation_id"], wait_s))

    async def cancel_one(request: Request) -> Response:
        operation_id = request.path_params["operation_id"]
        await table.wait(operation_id, 0)  # 404 where there is none
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
