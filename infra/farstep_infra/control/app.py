"""The control plane's HTTP: a route table, and handlers that translate between it and the nouns."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control import overview, runs, samplers, sessions
from farstep_infra.control.control import control_of
from farstep_infra.control.idempotency import once_of
from farstep_infra.control.keys import IssuedKeys
from farstep_infra.control.process_log import process_log
from farstep_infra.control.project_routes import key_routes, project_routes
from farstep_infra.control.projects import only_operators
from farstep_infra.control.queries import LISTS, ONCE, one_of, page_of, project_of, state_in, text_of
from farstep_infra.gateway.auth import TinkerAuth, credential_of
from farstep_infra.gateway.failures import respond_failure
from farstep_infra.gateway.routes import OPEN_TINKER_PATHS, gateway_routes
from farstep_infra.launchers.logs import MAX_TAIL_LINES
from farstep_infra.store.routes import OPEN_PATHS, checkpoint_routes
from farstep_proto import paths
from farstep_proto.errors import Conflict, Forbidden, NotFound, QuotaExceeded, TooManyRequests
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.app import Lifespan, make_app
from farstep_serving.descriptions import WAIT_S, Media, describe, query
from farstep_serving.keys import caller_of
from farstep_serving.messages import read_message, respond, wait_s_of

MAX_WAIT_S = 60.0


def make_control_app(*, keys: IssuedKeys, lifespan: Lifespan, asks_for_tokens: bool = False) -> Starlette:
    """The app; `lifespan` puts a `Control` at `app.state.control` and a `Gateway` at `app.state.gateway`.

    Args:
        asks_for_tokens: whether clients of the Tinker wire exchange their key for a token.
    """
    auth = TinkerAuth(keys, asks_for_tokens=asks_for_tokens)
    routes = [
        Route(paths.HEALTH, _health, methods=["GET"]),
        Route(paths.SESSIONS, _create_session, methods=["POST"]),
        Route(paths.SESSIONS, _list_sessions, methods=["GET"]),
        Route(paths.SESSION, _get_session, methods=["GET"]),
        Route(paths.SESSION, _delete_session, methods=["DELETE"]),
        Route(paths.SESSION_HEARTBEAT, _heartbeat, methods=["POST"]),
        Route(paths.SESSION_RUNS, _create_run, methods=["POST"]),
        Route(paths.SESSION_SAMPLERS, _create_sampler, methods=["POST"]),
        Route(paths.SAMPLERS, _list_samplers, methods=["GET"]),
        Route(paths.SAMPLER, _get_sampler, methods=["GET"]),
        Route(paths.SAMPLER, _stop_sampler, methods=["DELETE"]),
        Route(paths.RUNS, _list_runs, methods=["GET"]),
        Route(paths.RUN, _get_run, methods=["GET"]),
        Route(paths.RUN, _delete_run, methods=["DELETE"]),
        Route(paths.RUN_DEACTIVATE, _deactivate_run, methods=["POST"]),
        Route(paths.PROCESS_LOG, _process_log, methods=["GET"]),
        Route(paths.CAPABILITIES, _get_capabilities, methods=["GET"]),
        Route(paths.STATUS, _get_status, methods=["GET"]),
        *project_routes(),
        *key_routes(keys),
        *checkpoint_routes(
            lambda request: control_of(request).checkpoints,
            has_run=lambda request, run_id: control_of(request).runs.exists(run_id, caller=caller_of(request)),
        ),
    ]
    app = make_app(
        [*routes, *gateway_routes()],
        keys=auth,
        lifespan=lifespan,
        open_paths=OPEN_PATHS | OPEN_TINKER_PATHS,
        error_response=respond_failure,
        credential_of=credential_of,
        title="Farstep control plane",
    )
    app.state.tinker_auth = auth
    return app


@describe("Tell that the server lives")
async def _health(request: Request) -> Response:
    return respond(request, common_pb2.Empty())


@describe(
    "Open a session",
    takes=control_pb2.CreateSessionRequest,
    gives=control_pb2.Session,
    status=201,
    parameters=[ONCE],
    errors=[NotFound, QuotaExceeded, Conflict],
)
async def _create_session(request: Request) -> Response:
    message = await read_message(request, control_pb2.CreateSessionRequest)
    once = once_of(request, message)
    session = await control_of(request).sessions.create(message, caller=caller_of(request), once=once)
    return respond(request, session, status=201)


@describe(
    "List sessions",
    gives=control_pb2.ListSessionsResponse,
    parameters=[*LISTS, state_in(sessions.STATES)],
    errors=[NotFound],
)
async def _list_sessions(request: Request) -> Response:
    listed = await control_of(request).sessions.list(
        page_of(request),
        caller=caller_of(request),
        project=project_of(request),
        state=one_of(request, "state", sessions.STATES),
    )
    return respond(request, listed)


@describe("Look at a session", gives=control_pb2.Session)
async def _get_session(request: Request) -> Response:
    session_id = request.path_params["session_id"]
    return respond(request, await control_of(request).sessions.get(session_id, caller=caller_of(request)))


@describe("Close a session")
async def _delete_session(request: Request) -> Response:
    session_id = request.path_params["session_id"]
    await control_of(request).sessions.close(session_id, caller=caller_of(request))
    await control_of(request).samplers.stop_all_of(session_id)
    return respond(request, common_pb2.Empty())


@describe("Say that a session's client lives", takes=control_pb2.HeartbeatRequest, gives=control_pb2.Session)
async def _heartbeat(request: Request) -> Response:
    message = await read_message(request, control_pb2.HeartbeatRequest)
    session_id = request.path_params["session_id"]
    seen = await control_of(request).sessions.heartbeat(session_id, message, caller=caller_of(request))
    return respond(request, seen)


@describe(
    "Provision a run",
    takes=control_pb2.ProvisionRunRequest,
    gives=control_pb2.ProvisionedRun,
    status=202,
    parameters=[ONCE],
    errors=[TooManyRequests, QuotaExceeded, Conflict],
)
async def _create_run(request: Request) -> Response:
    message = await read_message(request, control_pb2.ProvisionRunRequest)
    once = once_of(request, message)
    session_id = request.path_params["session_id"]
    run = await control_of(request).runs.create(session_id, message, caller=caller_of(request), once=once)
    return respond(request, run, status=202)


@describe(
    "Provision a sampler",
    takes=control_pb2.ProvisionSamplerRequest,
    gives=control_pb2.ProvisionedSampler,
    status=202,
    parameters=[ONCE],
    errors=[TooManyRequests, QuotaExceeded, Conflict],
)
async def _create_sampler(request: Request) -> Response:
    message = await read_message(request, control_pb2.ProvisionSamplerRequest)
    once = once_of(request, message)
    session_id = request.path_params["session_id"]
    sampler = await control_of(request).samplers.create(session_id, message, caller=caller_of(request), once=once)
    return respond(request, sampler, status=202)


@describe(
    "List fresh samplers",
    gives=control_pb2.ListProvisionedSamplersResponse,
    parameters=[*LISTS, state_in(samplers.STATES)],
    errors=[NotFound],
)
async def _list_samplers(request: Request) -> Response:
    listed = await control_of(request).samplers.list(
        page_of(request),
        caller=caller_of(request),
        project=project_of(request),
        state=one_of(request, "state", samplers.STATES),
    )
    return respond(request, listed)


@describe("Look at a sampler", gives=control_pb2.ProvisionedSampler, parameters=[WAIT_S], errors=[TooManyRequests])
async def _get_sampler(request: Request) -> Response:
    wait_s = wait_s_of(request, most=MAX_WAIT_S)
    sampler_id = request.path_params["sampler_id"]
    return respond(
        request, await control_of(request).samplers.get(sampler_id, caller=caller_of(request), wait_s=wait_s)
    )


@describe("Stop a sampler, whoever uses it", gives=common_pb2.Empty, errors=[NotFound])
async def _stop_sampler(request: Request) -> Response:
    await control_of(request).samplers.stop(request.path_params["sampler_id"], caller=caller_of(request))
    return respond(request, common_pb2.Empty())


@describe(
    "List runs",
    gives=control_pb2.ListProvisionedRunsResponse,
    parameters=[*LISTS, state_in(runs.STATES), query("session_id", "of this session alone")],
    errors=[NotFound],
)
async def _list_runs(request: Request) -> Response:
    listed = await control_of(request).runs.list(
        page_of(request),
        caller=caller_of(request),
        project=project_of(request),
        state=one_of(request, "state", runs.STATES),
        session_id=text_of(request, "session_id"),
    )
    return respond(request, listed)


@describe("Look at a run", gives=control_pb2.ProvisionedRun, parameters=[WAIT_S], errors=[TooManyRequests])
async def _get_run(request: Request) -> Response:
    wait_s = wait_s_of(request, most=MAX_WAIT_S)
    run_id = request.path_params["run_id"]
    return respond(request, await control_of(request).runs.get(run_id, caller=caller_of(request), wait_s=wait_s))


@describe("Delete a run", errors=[Conflict])
async def _delete_run(request: Request) -> Response:
    await control_of(request).runs.delete(request.path_params["run_id"], caller=caller_of(request))
    return respond(request, common_pb2.Empty())


@describe("Let a run rest until somebody waits for it", gives=control_pb2.ProvisionedRun, errors=[Conflict])
async def _deactivate_run(request: Request) -> Response:
    run_id = request.path_params["run_id"]
    return respond(request, await control_of(request).runs.deactivate(run_id, caller=caller_of(request)))


@describe(
    "Read what a process has written",
    gives=Media({"text/plain": {"type": "string"}}),
    parameters=[
        query("tail", "how many of its last lines", type="integer", minimum=0, maximum=MAX_TAIL_LINES),
        query("follow", "go on with what it writes", type="boolean"),
    ],
    errors=[Forbidden],
)
async def _process_log(request: Request) -> Response:
    control = control_of(request)
    return await process_log(request, control.fleet, is_ending=control.is_ending)


@describe("Tell what can be provisioned", gives=control_pb2.Capabilities)
async def _get_capabilities(request: Request) -> Response:
    return respond(request, overview.capabilities(control_of(request).fleet))


@describe("Tell what runs", gives=control_pb2.Status, errors=[Forbidden])
async def _get_status(request: Request) -> Response:
    only_operators(caller_of(request), "see what runs")
    control = control_of(request)
    status = await overview.status(control.fleet, control.sessions, control.runs, base_url=control.base_url)
    return respond(request, status)
