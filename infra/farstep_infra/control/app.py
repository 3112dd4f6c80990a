"""The control plane's HTTP: a route table, and handlers that translate between it and the nouns."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from farstep_infra.control import overview
from farstep_infra.control.checkpoints import Checkpoints
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.runs import Runs
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.sessions import Sessions
from farstep_proto import paths
from farstep_proto.errors import NotFound
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.app import Lifespan, make_app
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
        Route(paths.RUN_CHECKPOINTS, _list_checkpoints, methods=["GET"]),
        Route(paths.CHECKPOINT, _get_checkpoint),
        Route(paths.CHECKPOINT_ARCHIVE, _get_archive, methods=["GET"]),
        Route(paths.CHECKPOINT_FILE, _get_file, methods=["GET"]),
        Route(paths.CAPABILITIES, _get_capabilities, methods=["GET"]),
        Route(paths.STATUS, _get_status, methods=["GET"]),
    ]
    # A file's URL carries its own proof.
    return make_app(routes, keys=keys, lifespan=lifespan, open_paths=frozenset({paths.CHECKPOINT_FILE}))


async def _health(request: Request) -> Response:
    return respond(request, common_pb2.Empty())


async def _create_session(request: Request) -> Response:
    message = await read_message(request, control_pb2.CreateSessionRequest)
    return respond(request, await _control(request).sessions.create(message), status=201)


async def _get_session(request: Request) -> Response:
    return respond(request, await _control(request).sessions.get(request.path_params["session_id"]))


async def _delete_session(request: Request) -> Response:
    session_id = request.path_params["session_id"]
    await _control(request).sessions.close(session_id)
    await _control(request).samplers.stop_all_of(session_id)
    return respond(request, common_pb2.Empty())


async def _create_run(request: Request) -> Response:
    message = await read_message(request, control_pb2.ProvisionRunRequest)
    return respond(request, await _control(request).runs.create(request.path_params["session_id"], message), status=202)


async def _create_sampler(request: Request) -> Response:
    message = await read_message(request, control_pb2.ProvisionSamplerRequest)
    sampler = await _control(request).samplers.create(request.path_params["session_id"], message)
    return respond(request, sampler, status=202)


async def _get_sampler(request: Request) -> Response:
    wait_s = wait_s_of(request, most=MAX_WAIT_S)
    return respond(request, await _control(request).samplers.get(request.path_params["sampler_id"], wait_s=wait_s))


async def _list_runs(request: Request) -> Response:
    return respond(request, await _control(request).runs.list())


async def _get_run(request: Request) -> Response:
    wait_s = wait_s_of(request, most=MAX_WAIT_S)
    return respond(request, await _control(request).runs.get(request.path_params["run_id"], wait_s=wait_s))


async def _delete_run(request: Request) -> Response:
    await _control(request).runs.delete(request.path_params["run_id"])
    return respond(request, common_pb2.Empty())


async def _list_checkpoints(request: Request) -> Response:
    run_id = request.path_params["run_id"]
    found = await _control(request).checkpoints.list(run_id)
    # A run that was made on a trainer directly is known by its checkpoints alone.
    if not found.checkpoints and not await _control(request).runs.exists(run_id):
        raise NotFound(f"no run {run_id!r}", field="run_id")
    return respond(request, found)


async def _get_checkpoint(request: Request) -> Response:
    return respond(request, await _control(request).checkpoints.get(_checkpoint(request)))


async def _get_archive(request: Request) -> Response:
    archive = await _control(request).checkpoints.archive(
        _checkpoint(request), base_url=str(request.base_url), page=request.query_params.get("page", "")
    )
    return respond(request, archive)


async def _get_file(request: Request) -> Response:
    file = await _control(request).checkpoints.file(
        _checkpoint(request),
        request.path_params["file"],
        expires=request.query_params.get("expires", ""),
        signature=request.query_params.get("signature", ""),
    )
    return FileResponse(file, filename=file.name, media_type="application/octet-stream")


async def _get_capabilities(request: Request) -> Response:
    return respond(request, overview.capabilities(_control(request).fleet))


async def _get_status(request: Request) -> Response:
    control = _control(request)
    status = await overview.status(control.fleet, control.sessions, control.runs, base_url=control.base_url)
    return respond(request, status)


def _control(request: Request) -> Control:
    control = request.app.state.control
    assert isinstance(control, Control)
    return control


def _checkpoint(request: Request) -> CheckpointPath:
    return CheckpointPath.from_checkpoint_id("{run_id}/{kind}/{name}".format(**request.path_params))
