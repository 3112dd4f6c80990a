"""What the SDK says about checkpoints, to a control plane or to a trainer: both answer alike.

Lives on the background loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import Message

from farstep._connection import Connection
from farstep._pages import items
from farstep.checkpoints import Checkpoint, CheckpointArchive, archive_from_proto, checkpoint_from_proto
from farstep.errors import checked
from farstep_proto import paths
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import control_pb2 as pb

M = TypeVar("M", bound=Message)


class CheckpointRequests:
    """Args: `budget_s` bounds the retries of each request, in seconds; None: as everywhere in the SDK."""

    def __init__(self, connection: Connection, *, budget_s: float | None = None) -> None:
        self._connection = connection
        self._budget_s = budget_s

    async def list(self, run_id: str) -> list[Checkpoint]:
        path = paths.of(paths.RUN_CHECKPOINTS, run_id=run_id)
        kind = pb.ListCheckpointsResponse
        found = await items(self._connection, path, kind, lambda page: page.checkpoints, budget_s=self._budget_s)
        return [checkpoint_from_proto(checkpoint) for checkpoint in found]

    async def get(self, path: CheckpointPath) -> Checkpoint:
        return checkpoint_from_proto(await self._call("GET", _path_of(paths.CHECKPOINT, path), pb.Checkpoint))

    async def archive(self, path: CheckpointPath) -> CheckpointArchive:
        pages: list[pb.CheckpointArchive] = []
        params: Mapping[str, str] = {}
        where = _path_of(paths.CHECKPOINT_ARCHIVE, path)
        while not pages or pages[-1].next_page:
            pages.append(await self._call("GET", where, pb.CheckpointArchive, params=params))
            params = {"page": pages[-1].next_page}
        return archive_from_proto(pages)

    async def delete(self, path: CheckpointPath) -> None:
        # Not repeatable: where the answer was lost, a second try would say that there is none.
        await self._call("DELETE", _path_of(paths.CHECKPOINT, path), common_pb2.Empty, repeatable=False)

    async def set_ttl(self, path: CheckpointPath, ttl_seconds: int | None) -> Checkpoint:
        message = pb.SetTtlRequest(ttl_seconds=ttl_seconds)
        found = await self._call("PUT", _path_of(paths.CHECKPOINT_TTL, path), pb.Checkpoint, message=message)
        return checkpoint_from_proto(found)

    async def _call(
        self,
        method: str,
        path: str,
        reply: type[M],
        *,
        message: Message | None = None,
        params: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> M:
        return await self._connection.call(
            method, path, reply, message=message, params=params, budget_s=self._budget_s, repeatable=repeatable
        )


def checked_path(path_or_id: str) -> CheckpointPath:
    """Raises InvalidInputError."""
    with checked():
        return CheckpointPath.from_checkpoint_id(path_or_id)


def _path_of(template: str, path: CheckpointPath) -> str:
    return paths.of(template, run_id=path.run_id, kind=path.kind, name=path.name)
