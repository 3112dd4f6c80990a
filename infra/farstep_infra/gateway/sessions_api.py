"""Sessions, as the Tinker SDK's RestClient and command ask for them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.gateway import gateway_of
from farstep_infra.gateway.session_records import SessionRecords
from farstep_infra.gateway.session_search import Place, Search, SessionSummary
from farstep_infra.gateway.windows import LIMIT, OFFSET, SCOPE, is_accessible, window_of
from farstep_serving.descriptions import describe
from farstep_serving.keys import caller_of

_DEFAULT_LIMIT = 20


class SessionIds(Body):
    sessions: list[str]


class SessionContent(Body):
    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class ProjectChoice(Body):
    project_id: str


class FoundSessions(Body):
    sessions: list[SessionSummary]
    next_cursor: Place | None = None


@describe(
    "List sessions, newest first",
    gives=media(SessionIds),
    error=media(ErrorBody),
    parameters=[LIMIT, OFFSET, SCOPE],
)
async def _list(request: Request) -> Response:
    is_accessible(request)
    window = window_of(request, default=_DEFAULT_LIMIT)
    ids = await _records(request).ids(limit=window.limit, offset=window.offset)
    return answer(SessionIds(sessions=list(ids)))


@describe("Look at a Tinker session", gives=media(SessionContent), error=media(ErrorBody), parameters=[SCOPE])
async def _get(request: Request) -> Response:
    is_accessible(request)
    session_id, records = request.path_params["session_id"], _records(request)
    session = await gateway_of(request).control.sessions.get(session_id, caller=caller_of(request))
    content = SessionContent(
        training_run_ids=list(await records.runs_of(session_id)),
        sampler_ids=list(await records.sampling_sessions_of(session_id)),
        user_metadata=dict(session.user_metadata) or None,
        display_name=session.display_name or None,
    )
    return answer(content)


@describe("Search sessions", takes=media(Search), gives=media(FoundSessions), error=media(ErrorBody))
async def _search(request: Request) -> Response:
    found, following = await _records(request).search(await read_json(request, Search))
    return answer(FoundSessions(sessions=found, next_cursor=following))


@describe(
    "Give an empty session to another project",
    takes=media(ProjectChoice),
    gives=media(Body),
    error=media(ErrorBody),
)
async def _assign(request: Request) -> Response:
    choice = await read_json(request, ProjectChoice)
    await _records(request).assign(request.path_params["session_id"], choice.project_id)
    return answer(Body())


def _records(request: Request) -> SessionRecords:
    gateway = gateway_of(request)
    return SessionRecords(gateway.control, gateway.db, caller_of(request))


ROUTES = [
    Route(f"{PREFIX}sessions", _list, methods=["GET"]),
    Route(f"{PREFIX}sessions/search", _search, methods=["POST"]),
    Route(f"{PREFIX}sessions/{{session_id}}", _get, methods=["GET"]),
    Route(f"{PREFIX}sessions/{{session_id}}/project", _assign, methods=["PUT"]),
]
