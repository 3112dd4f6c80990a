"""Sessions as the Tinker SDK opens, keeps and ends them: they are the control plane's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.control.idempotency import Once
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody, Gone
from farstep_proto.errors import NotFound
from farstep_proto.v1 import control_pb2
from farstep_serving.descriptions import describe
from farstep_serving.keys import caller_of


class CreateSession(Body):
    tags: Sequence[str] = ()
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class CreatedSession(Body):
    session_id: str
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None
    type: Literal["create_session"] = "create_session"


class Heartbeat(Body):
    session_id: str


class HeartbeatAnswer(Body):
    type: Literal["session_heartbeat"] = "session_heartbeat"


class Reason(Body):
    type: Literal["success", "errored", "interrupted"] = "success"


class Finish(Body):
    reason: Reason = Reason()
    detail: str | None = None


class Finished(Body):
    type: Literal["session_finished"] = "session_finished"


@describe(
    "Open a session for a Tinker client",
    takes=media(CreateSession),
    gives=media(CreatedSession),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _create(request: Request) -> Response:
    asked = await read_json(request, CreateSession)
    message = control_pb2.CreateSessionRequest(
        project=asked.project_id or "",
        user_metadata=metadata_of(asked.user_metadata),
        sdk_version=asked.sdk_version,
        display_name=asked.display_name or "",
        tags=asked.tags,
    )
    session = await control_of(request).sessions.create(message, caller=caller_of(request), once=_once(request))
    return answer(CreatedSession(session_id=session.session_id))


@describe(
    "Say that a Tinker session's client lives",
    takes=media(Heartbeat),
    gives=media(HeartbeatAnswer),
    error=media(ErrorBody),
    errors=[NotFound, Gone],
)
async def _heartbeat(request: Request) -> Response:
    asked = await read_json(request, Heartbeat)
    sessions, caller = control_of(request).sessions, caller_of(request)
    session = await sessions.get(asked.session_id, caller=caller)
    if session.HasField("closed_at"):
        raise Gone(f"session {asked.session_id} is closed", field="session_id")  # which ends the SDK's loop
    await sessions.heartbeat(asked.session_id, control_pb2.HeartbeatRequest(), caller=caller)
    return answer(HeartbeatAnswer())


@describe("End a Tinker session", takes=media(Finish), gives=media(Finished), error=media(ErrorBody), errors=[NotFound])
async def _finish(request: Request) -> Response:
    asked = await read_json(request, Finish)
    session_id, control = request.path_params["session_id"], control_of(request)
    await control.sessions.close(
        session_id, caller=caller_of(request), outcome=asked.reason.type, detail=asked.detail or ""
    )
    await control.samplers.stop_all_of(session_id)
    return answer(Finished())


def metadata_of(given: Mapping[str, Any] | None) -> dict[str, str]:
    """What a client says of a thing, as texts: what is none is written as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in (given or {}).items()}


def _once(request: Request) -> Once:
    """The SDK repeats a creation under one key, as long as it is one attempt of its transport."""
    key = request.headers.get("x-idempotency-key", "")
    is_one = 0 < len(key) <= 200 and key.isascii() and key.isprintable()
    return Once(caller_of(request).key_id, f"tinker-session-{key}", b"") if is_one else Once()


ROUTES = [
    Route(f"{PREFIX}create_session", _create, methods=["POST"]),
    Route(f"{PREFIX}session_heartbeat", _heartbeat, methods=["POST"]),
    Route(f"{PREFIX}sessions/{{session_id}}/finish", _finish, methods=["POST"]),
]
