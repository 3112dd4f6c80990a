"""What the SDK says about checkpoints, to a control plane or to a trainer: both answer alike.

Lives on the background loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from farstep._connection import Connection, path_of
from farstep.checkpoints import Checkpoint, CheckpointArchive, archive_from_proto, checkpoint_from_proto
from farstep.errors import checked
from farstep_proto import paths
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import control_pb2 as pb


class CheckpointRequests:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self, run_id: str) -> list[Checkpoint]:
        path = path_of(paths.RUN_CHECKPOINTS, run_id=run_id)
        pages: list[pb.ListCheckpointsResponse] = []
        params: Mapping[str, str] = {}
        while not pages or pages[-1].next_page:
            pages.append(await self._connection.call("GET", path, pb.ListCheckpointsResponse, params=params))
            params = {"page": pages[-1].next_page}
        return [checkpoint_from_proto(checkpoint) for page in pages for checkpoint in page.checkpoints]

    async def get(self, path: CheckpointPath) -> Checkpoint:
        found = await self._connection.call("GET", _path_of(paths.CHECKPOINT, path), pb.Checkpoint)
        return checkpoint_from_proto(found)

    async def archive(self, path: CheckpointPath) -> CheckpointArchive:
        pages: list[pb.CheckpointArchive] = []
        params: Mapping[str, str] = {}
        where = _path_of(paths.CHECKPOINT_ARCHIVE, path)
        while not pages or pages[-1].next_page:
            pages.append(await self._connection.call("GET", where, pb.CheckpointArchive, params=params))
            params = {"page": pages[-1].next_page}
        return archive_from_proto(pages)

    async def delete(self, path: CheckpointPath) -> None:
        # Not repeatable: where the answer was lost, a second try would say that there is none.
        where = _path_of(paths.CHECKPOINT, path)
        await self._connection.call("DELETE", where, common_pb2.Empty, repeatable=False)

    async def set_ttl(self, path: CheckpointPath, ttl_seconds: int | None) -> Checkpoint:
        message = pb.SetTtlRequest(ttl_seconds=ttl_seconds)
        found = await self._connection.call("PUT", _path_of(paths.CHECKPOINT_TTL, path), pb.Checkpoint, message=message)
        return checkpoint_from_proto(found)


def checked_path(path_or_id: str) -> CheckpointPath:
    """Raises InvalidInputError."""
    with checked():
        return CheckpointPath.from_checkpoint_id(path_or_id)


def _path_of(template: str, path: CheckpointPath) -> str:
    return path_of(template, run_id=path.run_id, kind=path.kind, name=path.name)
