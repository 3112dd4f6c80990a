"""Errors in the shape that OpenAI's clients expect, under names of parameters that their callers know.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

The status is the one that the error has everywhere, and clients raise their own classes by it.
"""

from __future__ import annotations

import json
import logging
import math
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farstep_proto.errors import ApiError, Internal, NotFound

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 425: "policy_not_ready", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 425: "policy_not_ready", 429: "rate_limit_exceeded", 503: "unavailable"}
# Where a request of ours names a field otherwise than a request of theirs.
_PARAMS = {
    "stop_strings": "stop",
    "stop_tokens": "stop_token_ids",
    "num_samples": "n",
    "topk_logprobs": "top_logprobs",
    "topk_prompt_logprobs": "prompt_logprobs",
    "json_schema": "response_format",
    "regex": "structured_outputs.regex",
    "grammar": "structured_outputs.grammar",
    "choice": "structured_outputs.choice",
    "run_id": "model",
    "model_path": "model",
    "path": "model",
}


class NoSuchModel(NotFound):
    def __init__(self, name: str, *, hint: str = "") -> None:
        super().__init__(f"the model {name!r} does not exist", field="model", hint=hint)


def error_body(error: ApiError) -> dict[str, Any]:
    param = _param(error.field)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if param and param not in message:
        message = f"{param}: {message}"
    return {
        "error": {"message": message, "type": _type(error.status), "param": param or None, "code": _code(error, param)}
    }


def respond_error(error: Exception, request: Request) -> Response:
    known = as_api_error(error, where=f"{request.method} {request.url.path}")
    response = JSONResponse(error_body(known), status_code=known.status)
    if known.retry_after_s is not None:
        response.headers["Retry-After"] = str(math.ceil(known.retry_after_s))
    return response


def error_event(error: Exception) -> bytes:
    """The last word of a stream that has begun."""
    body = json.dumps(error_body(as_api_error(error, where="a stream")))
    return f"data: {body}\n\n".encode()


def as_api_error(error: Exception, *, where: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    log.error("unhandled error in %s", where, exc_info=error)
    return Internal("the server made a mistake; its log has the details")


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def _code(error: ApiError, param: str) -> str | None:
    if error.status == 404:
        return "model_not_found" if param == "model" else "not_found"
    if error.status == 400 and "context of" in error.message:
        return "context_length_exceeded"
    return _CODES.get(error.status)


def _param(field: str) -> str:
    name = field.removeprefix("params.")
    head, rest = re.match(r"(\w*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return _PARAMS.get(head, head) + rest
