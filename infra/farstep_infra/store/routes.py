"""The routes of checkpoints, the same on a control plane and on a trainer: handlers that translate, and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from farstep_infra.store.archive import Checkpoints
from farstep_proto import paths
from farstep_proto.errors import NotFound
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.keys import caller_of
from farstep_serving.messages import read_message, respond

OPEN_PATHS = frozenset({paths.CHECKPOINT_FILE})  # a file's URL carries its own proof
_MAX_BODY_BYTES = 4 << 10

Find = Callable[[Request], Checkpoints]
HasRun = Callable[[Request, str], Awaitable[bool]]


def checkpoint_routes(find: Find, *, has_run: HasRun) -> list[Route]:
    """Args:
    find: the checkpoints that a request is about.
    has_run: whether the server knows a run of that id that the caller may see, with or without a checkpoint. To an
        operator, a run that was made elsewhere is known by its checkpoints alone; for others, only this counts.
    """

    async def listed(request: Request) -> Response:
        run_id = request.path_params["run_id"]
        has_it = await has_run(request, run_id)
        if not has_it and not caller_of(request).is_operator:
            raise _no_run(run_id)
        found = await find(request).list(run_id, page=request.query_params.get("page", ""))
        if not has_it and not found.checkpoints:
            raise _no_run(run_id)
        return respond(request, found)

    async def get(request: Request) -> Response:
        return respond(request, await find(request).get(await _path(request, has_run)))

    async def delete(request: Request) -> Response:
        await find(request).delete(await _path(request, has_run))
        return respond(request, common_pb2.Empty())

    async def set_ttl(request: Request) -> Response:
        message = await read_message(request, control_pb2.SetTtlRequest, limit=_MAX_BODY_BYTES)
        ttl_seconds = message.ttl_seconds if message.HasField("ttl_seconds") else None
        return respond(request, await find(request).set_ttl(await _path(request, has_run), ttl_seconds))

    async def archive(request: Request) -> Response:
        page = request.query_params.get("page", "")
        path = await _path(request, has_run)
        return respond(request, await find(request).archive(path, base_url=str(request.base_url), page=page))

    async def file(request: Request) -> Response:
        place = await find(request).file(
            _named(request),
            request.path_params["file"],
            expires=request.query_params.get("expires", ""),
            signature=request.query_params.get("signature", ""),
        )
        return FileResponse(place, filename=place.name, media_type="application/octet-stream")

    return [
        Route(paths.RUN_CHECKPOINTS, listed, methods=["GET"]),
        Route(paths.CHECKPOINT, get, methods=["GET"]),
        Route(paths.CHECKPOINT, delete, methods=["DELETE"]),
        Route(paths.CHECKPOINT_TTL, set_ttl, methods=["PUT"]),
        Route(paths.CHECKPOINT_ARCHIVE, archive, methods=["GET"]),
        Route(paths.CHECKPOINT_FILE, file, methods=["GET"]),
    ]


async def _path(request: Request, has_run: HasRun) -> CheckpointPath:
    """What the URL names, if the caller may see it."""
    path = _named(request)
    if not caller_of(request).is_operator and not await has_run(request, path.run_id):
        raise NotFound(f"no checkpoint {path}", field="path")
    return path


def _no_run(run_id: str) -> NotFound:
    return NotFound(f"no run {run_id!r}", field="run_id")


def _named(request: Request) -> CheckpointPath:
    return CheckpointPath.from_checkpoint_id("{run_id}/{kind}/{name}".format(**request.path_params))
