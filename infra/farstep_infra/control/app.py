"""The control plane's HTTP: a route table, and handlers that translate between it and the nouns."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control import overview
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.runs import Runs
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.sessions import Sessions
from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.routes import OPEN_PATHS, checkpoint_routes
from farstep_proto import paths
from farstep_proto.errors import NotFound
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.app import Lifespan, make_app
from farstep_serving.descriptions import WAIT_S, describe
from farstep_serving.keys import KeyRing
from farstep_serving.messages import read_message, respond, wait_s_of

MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Control:
    """Everything that a request can reach."""

    base_url: str
    fleet: Fleet
    sessions: Sessions
    runs: Runs
    samplers: FreshSamplers
    checkpoints: Checkpoints


def make_control_app(*, keys: KeyRing, lifespan: Lifespan) -> Starlette:
    """The app; `lifespan` puts a `Control` at `app.state.control`."""
    routes = [
        Route(paths.HEALTH, _health, methods=["GET"]),
        Route(paths.SESSIONS, _create_session, methods=["POST"]),
        Route(paths.SESSION, _get_session, methods=["GET"]),
        Route(paths.SESSION, _delete_session, methods=["DELETE"]),
        Route(paths.SESSION_RUNS, _create_run, methods=["POST"]),
        Route(paths.SESSION_SAMPLERS, _create_sampler, methods=["POST"]),
        Route(paths.SAMPLER, _get_sampler, methods=["GET"]),
        Route(paths.RUNS, _list_runs, methods=["GET"]),
        Route(paths.RUN, _get_run, methods=["GET"]),
        Route(paths.RUN, _delete_run, methods=["DELETE"]),
        Route(paths.CAPABILITIES, _get_capabilities, methods=["GET"]),
        Route(paths.STATUS, _get_status, methods=["GET"]),
        *checkpoint_routes(
            lambda request: _control(request).checkpoints,
            has_run=lambda request, run_id: _control(request).runs.exists(run_id),
        ),
    ]
    return make_app(routes, keys=keys, lifespan=lifespan, open_paths=OPEN_PATHS, title="Farstep control plane")


@describe("Tell that the server lives")
async def _health(request: Request) -> Response:
    return respond(request, common_pb2.Empty())


@describe(
    "Open a session",
    takes=control_pb2.CreateSessionRequest,
    gives=control_pb2.Session,
    status=201,
    errors=[NotFound],
)
async def _create_session(request: Request) -> Response:
    message = await read_message(request, control_pb2.CreateSessionRequest)
    return respond(request, await _control(request).sessions.create(message), status=201)


@describe("Look at a session", gives=control_pb2.Session)
async def _get_session(request: Request) -> Response:
    return respond(request, await _control(request).sessions.get(request.path_params["session_id"]))


@describe("Close a session")
async def _delete_session(request: Request) -> Response:
    session_id = request.path_params["session_id"]
    await _control(request).sessions.close(session_id)
    await _control(request).samplers.stop_all_of(session_id)
    return respond(request, common_pb2.Empty())


@describe(
    "Provision a run",
    takes=control_pb2.ProvisionRunRequest,
    gives=control_pb2.ProvisionedRun,
    status=202,
)
async def _create_run(request: Request) -> Response:
    message = await read_message(request, control_pb2.ProvisionRunRequest)
    return respond(request, await _control(request).runs.create(request.path_params["session_id"], message), status=202)


@describe(
    "Provision a sampler",
    takes=control_pb2.ProvisionSamplerRequest,
    gives=control_pb2.ProvisionedSampler,
    status=202,
)
async def _create_sampler(request: Request) -> Response:
    message = await read_message(request, control_pb2.ProvisionSamplerRequest)
    sampler = await _control(request).samplers.create(request.path_params["session_id"], message)
    return respond(request, sampler, status=202)


@describe("Look at a sampler", gives=control_pb2.ProvisionedSampler, parameters=[WAIT_S])
async def _get_sampler(request: Request) -> Response:
    wait_s = wait_s_of(request, most=MAX_WAIT_S)
    return respond(request, await _control(request).samplers.get(request.path_params["sampler_id"], wait_s=wait_s))


@describe("List runs", gives=control_pb2.ListProvisionedRunsResponse)
async def _list_runs(request: Request) -> Response:
    return respond(request, await _control(request).runs.list())


@describe("Look at a run", gives=control_pb2.ProvisionedRun, parameters=[WAIT_S])
async def _get_run(request: Request) -> Response:
    wait_s = wait_s_of(request, most=MAX_WAIT_S)
    return respond(request, await _control(request).runs.get(request.path_params["run_id"], wait_s=wait_s))


@describe("Delete a run")
async def _delete_run(request: Request) -> Response:
    await _control(request).runs.delete(request.path_params["run_id"])
    return respond(request, common_pb2.Empty())


@describe("Tell what can be provisioned", gives=control_pb2.Capabilities)
async def _get_capabilities(request: Request) -> Response:
    return respond(request, overview.capabilities(_control(request).fleet))


@describe("Tell what runs", gives=control_pb2.Status)
async def _get_status(request: Request) -> Response:
    control = _control(request)
    status = await overview.status(control.fleet, control.sessions, control.runs, base_url=control.base_url)
    return respond(request, status)


def _control(request: Request) -> Control:
    control = request.app.state.control
    assert isinstance(control, Control)
    return control
