"""What the proxy refuses, in the shape that OpenAI's clients expect."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse, Response

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}


def refuse(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Response:
    return JSONResponse(error_body(status, message, code=code, param=param), status_code=status)


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def code_of(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str((error or {}).get("code") or "")
