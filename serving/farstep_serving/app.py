"""The application shell: a route table in, a Starlette app with keys and errors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from farstep_proto import paths
from farstep_proto.errors import ApiError, InvalidInput, NotFound
from farstep_serving.bodies import Bodies, BodyLimits
from farstep_serving.keys import Keys, RequireKey, authorization_of
from farstep_serving.messages import ErrorResponse, respond_error
from farstep_serving.openapi import OpenApi

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
