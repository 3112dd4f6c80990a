"""How the gateway says that something went wrong, in the shapes that the Tinker SDK reads.

What a caller did wrong inside a promise is a failed future of category "user", and what we did is one of "server": both
are final. A status that the SDK would repeat for minutes (409, 5xx) is for what a repetition can mend.
"""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from farstep_infra.gateway.bodies import Body
from farstep_proto import paths
from farstep_proto.errors import ApiError, Internal, NotFound, Unauthenticated
from farstep_proto.v1 import common_pb2
from farstep_serving.messages import respond_error

log = logging.getLogger(__name__)

PREFIX = "/api/v1/"
_OUR_PATHS = "bt://loops:"  # which this wire writes otherwise

Category = Literal["user", "server", "unknown"]


class Gone(NotFound):
    """It was there, and is no more."""

    status = 410
    error_class = "GoneError"


class Failure(Body):
    """A failed future, as `retrieve_future` says it with status 200."""

    error: str
    category: Category


class ErrorBody(Body):
    """Every other refusal."""

    error: str
    detail: str
    category: Category
    type: str
    field: str = ""


def failure_of(error: common_pb2.Error) -> Failure:
    """What became of an operation that failed, or of a submission that was refused."""
    return Failure(error=text_of(error), category=category_of(error.status))


def category_of(status: int) -> Category:
    """Whose mistake a status tells of: 4xx are the caller's, but for those that only say "not now"."""
    later = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
    return "user" if 400 <= status < 500 and status not in later else "server"


def text_of(error: common_pb2.Error) -> str:
    where = f"{error.field}: " if error.field and not error.message.startswith(error.field) else ""
    hint = f" ({error.hint})" if error.hint else ""
    return f"{where}{error.message}{hint}".replace(_OUR_PATHS, "tinker://")


async def respond_failure(request: Request, error: Exception) -> Response:
    """The app's handler for every exception: as the SDK reads it on the gateway's routes, as our own on the others."""
    if not request.url.path.startswith(PREFIX):
        return await respond_error(request, error)
    if not isinstance(error, ApiError):
        log.error("unhandled error in %s %s", request.method, request.url.path, exc_info=error)
        error = Internal("the server made a mistake; its log has the details")
    told = error.to_proto()
    if told.hint == Unauthenticated.default_hint:  # which speaks of our own clients
        told.hint = "set TINKER_API_KEY to tml- followed by a key of this server"
    body = {"error": text_of(told), "detail": text_of(told), "category": category_of(error.status)}
    body |= {"type": error.error_class, "field": error.field}
    response = Response(json.dumps(body), status_code=error.status, media_type=paths.JSON)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if error.status == HTTPStatus.UNAUTHORIZED:  # RFC 6750; by it the SDK knows that another token is worth a try
        is_invalid = any(request.headers.get(name) for name in ("x-api-key", "authorization"))
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if is_invalid else "Bearer"
    return response
