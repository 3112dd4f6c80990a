"""Messages in and out of HTTP: protobuf or JSON by media type, errors as messages."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from starlette.requests import Request
from starlette.responses import Response

from farstep_proto import paths
from farstep_proto.errors import ApiError, Internal, InvalidInput
from farstep_serving.bodies import bodies_of, read_body

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
ErrorResponse = Callable[[Request, Exception], Awaitable[Response]]

MAX_MESSAGE_BYTES = 1 << 20  # of those that carry no data


def decode(request: Request, body: bytes, kind: type[M]) -> M:
    """Parses a body by its Content-Type; an empty JSON body is the empty message.

    Raises:
        InvalidInput: it is not a `kind`.
    """
    return decode_as(request.headers.get("content-type", ""), body, kind)


def decode_as(content_type: str, body: bytes, kind: type[M]) -> M:
    """As `decode`, of a body that came with that Content-Type."""
    message = kind()
    try:
        if is_protobuf(content_type):
            message.ParseFromString(body)
        elif body:
            json_format.Parse(body, message)
    except (DecodeError, json_format.ParseError, UnicodeError, RecursionError) as error:
        reason = str(error).encode(errors="replace").decode()  # it may quote half a character
        name = kind.DESCRIPTOR.name
        raise InvalidInput(f"the body is not a {name}: {reason}", field=_failed_field(reason, name)) from error
    return message


def _failed_field(reason: str, message_name: str) -> str:
    """Where protobuf's JSON parser stopped, by what it says of it: the path, the fields inwards, or the longer."""
    path = re.search(rf" at {message_name}\.([\w.\[\]]*\w\]?)\.*$", reason)
    inwards = ".".join(re.findall(r"Failed to parse (\w+) field", reason))
    return max(path.group(1) if path else "", inwards, key=len) or "body"


async def read_message(request: Request, kind: type[M], *, limit: int = MAX_MESSAGE_BYTES) -> M:
    """Raises as `read_body` and `decode`."""
    body = await read_body(request, limit=limit)
    return await bodies_of(request).decoded(len(body), lambda: decode(request, body, kind))


def respond(request: Request, message: Message, *, status: int = 200) -> Response:
    """The message as protobuf where the client accepts that, else as JSON."""
    if is_protobuf(request.headers.get("accept", "")):
        return Response(message.SerializeToString(), status_code=status, media_type=paths.PROTOBUF)
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return Response(text, status_code=status, media_type=paths.JSON)


async def respond_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for every exception: our own as they are, any other as a bare 500."""
    if not isinstance(error, ApiError):
        log.error("unhandled error in %s %s", request.method, request.url.path, exc_info=error)
        error = Internal("the server made a mistake; its log has the details")
    response = respond(request, error.to_proto(), status=error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    return response


def wait_s_of(request: Request, *, most: float) -> float:
    """The query parameter `wait_s`, between 0 and `most` seconds."""
    text = request.query_params.get("wait_s", "0")
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidInput(f"{text!r} is not a number of seconds", field="wait_s") from error
    if not value >= 0:
        raise InvalidInput(f"{text!r} is not a number of seconds", field="wait_s")
    return min(value, most)


def is_protobuf(header: str) -> bool:
    """Of a Content-Type or an Accept."""
    return paths.PROTOBUF in header
