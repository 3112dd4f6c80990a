"""The routes of checkpoints, the same on a control plane and on a trainer: handlers that translate, and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from farstep_infra.store.archive import Checkpoints
from farstep_proto import paths
from farstep_proto.errors import Forbidden, NotFound
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.descriptions import PAGE, Media, describe, query
from farstep_serving.keys import caller_of
from farstep_serving.messages import read_message, respond

OPEN_PATHS = frozenset({paths.CHECKPOINT_FILE})  # a file's URL carries its own proof
_MAX_BODY_BYTES = 4 << 10

Find = Callable[[Request], Checkpoints]
HasRun = Callable[[Request, str], Awaitable[bool]]


def checkpoint_routes(find: Find, *, has_run: HasRun) -> list[Route]:
    """Args:
    find: the checkpoints that a request is about.
    has_run: whether the server knows a run of that id that the caller may see, which may have no checkpoint yet.
    """
    api = _CheckpointApi(find, has_run)
    return [
        Route(paths.RUN_CHECKPOINTS, api.listed, methods=["GET"]),
        Route(paths.CHECKPOINT, api.get, methods=["GET"]),
        Route(paths.CHECKPOINT, api.delete, methods=["DELETE"]),
        Route(paths.CHECKPOINT_TTL, api.set_ttl, methods=["PUT"]),
        Route(paths.CHECKPOINT_ARCHIVE, api.archive, methods=["GET"]),
        Route(paths.CHECKPOINT_FILE, api.file, methods=["GET"]),
    ]


@dataclass(frozen=True, slots=True)
class _CheckpointApi:
    find: Find
    has_run: HasRun

    @describe("List a run's checkpoints", gives=control_pb2.ListCheckpointsResponse, parameters=[PAGE])
    async def listed(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        found = await (await self._seen(request)).list(run_id, page=request.query_params.get("page", ""))
        # A run that was made elsewhere is known by its checkpoints alone.
        if not found.checkpoints and not await self.has_run(request, run_id):
            raise NotFound(f"no run {run_id!r}", field="run_id")
        return respond(request, found)

    @describe("Look at a checkpoint", gives=control_pb2.Checkpoint)
    async def get(self, request: Request) -> Response:
        return respond(request, await (await self._seen(request)).get(_path(request)))

    @describe("Delete a checkpoint")
    async def delete(self, request: Request) -> Response:
        await (await self._seen(request)).delete(_path(request))
        return respond(request, common_pb2.Empty())

    @describe("Set when a checkpoint expires", takes=control_pb2.SetTtlRequest, gives=control_pb2.Checkpoint)
    async def set_ttl(self, request: Request) -> Response:
        message = await read_message(request, control_pb2.SetTtlRequest, limit=_MAX_BODY_BYTES)
        ttl_seconds = message.ttl_seconds if message.HasField("ttl_seconds") else None
        return respond(request, await (await self._seen(request)).set_ttl(_path(request), ttl_seconds))

    @describe("Get the URLs of a checkpoint's files", gives=control_pb2.CheckpointArchive, parameters=[PAGE])
    async def archive(self, request: Request) -> Response:
        page, checkpoints = request.query_params.get("page", ""), await self._seen(request)
        return respond(request, await checkpoints.archive(_path(request), base_url=str(request.base_url), page=page))

    @describe(
        "Fetch a file by a URL of its archive",
        gives=Media({"application/octet-stream": {}}),
        parameters=[query("expires", "as in the URL"), query("signature", "as in the URL")],
        errors=[Forbidden],
    )
    async def file(self, request: Request) -> Response:
        place = await self.find(request).file(
            _path(request),
            request.path_params["file"],
            expires=request.query_params.get("expires", ""),
            signature=request.query_params.get("signature", ""),
        )
        return FileResponse(place, filename=place.name, media_type="application/octet-stream")

    async def _seen(self, request: Request) -> Checkpoints:
        caller = caller_of(request)
        owns_unmarked = not caller.is_operator and await self.has_run(request, request.path_params["run_id"])
        return self.find(request).seen_by(caller, owns_unmarked=owns_unmarked)


def _path(request: Request) -> CheckpointPath:
    return CheckpointPath.from_checkpoint_id("{run_id}/{kind}/{name}".format(**request.path_params))
