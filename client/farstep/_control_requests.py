"""What the SDK asks a control plane beside provisioning: what there is, what was used, who may come in.

Lives on the background loop. It opens no session and starts nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import date
from typing import TypeVar

from google.protobuf.message import Message

from farstep import records
from farstep._connection import Connection
from farstep._control import run_from_proto
from farstep._pages import items
from farstep.results import RunInfo
from farstep_proto import paths
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import control_pb2 as pb

M = TypeVar("M", bound=Message)

_PAGE = {"limit": "1000"}  # the most that a control plane gives at once


class ControlRequests:
    """Args: `budget_s` bounds the retries of each request, in seconds; None: as everywhere in the SDK."""

    def __init__(self, connection: Connection, *, budget_s: float | None = None) -> None:
        self._connection = connection
        self._budget_s = budget_s

    async def list_runs(self) -> list[RunInfo]:
        return [run_from_proto(run) for run in await self.run_messages()]

    async def run_messages(self) -> list[pb.ProvisionedRun]:
        return await items(
            self._connection, paths.RUNS, pb.ListProvisionedRunsResponse, lambda page: page.runs,
            params=_PAGE, budget_s=self._budget_s,
        )  # fmt: skip

    async def get_run(self, run_id: str) -> RunInfo:
        return run_from_proto(await self._call("GET", paths.of(paths.RUN, run_id=run_id), pb.ProvisionedRun))

    async def delete_run(self, run_id: str) -> None:
        await self._call("DELETE", paths.of(paths.RUN, run_id=run_id), common_pb2.Empty)

    async def deactivate_run(self, run_id: str) -> RunInfo:
        path = paths.of(paths.RUN_DEACTIVATE, run_id=run_id)
        return run_from_proto(await self._call("POST", path, pb.ProvisionedRun))

    async def list_samplers(self) -> list[records.SamplerInfo]:
        kind = pb.ListProvisionedSamplersResponse
        found = await items(
            self._connection, paths.SAMPLERS, kind, lambda page: page.samplers,
            params=_PAGE, budget_s=self._budget_s,
        )  # fmt: skip
        return [records.sampler_from_proto(sampler) for sampler in found]

    async def get_sampler(self, sampler_id: str) -> records.SamplerInfo:
        path = paths.of(paths.SAMPLER, sampler_id=sampler_id)
        return records.sampler_from_proto(await self._call("GET", path, pb.ProvisionedSampler))

    async def stop_sampler(self, sampler_id: str) -> None:
        path = paths.of(paths.SAMPLER, sampler_id=sampler_id)
        await self._call("DELETE", path, common_pb2.Empty, repeatable=False)

    async def list_sessions(self) -> list[records.SessionInfo]:
        found = await items(
            self._connection, paths.SESSIONS, pb.ListSessionsResponse, lambda page: page.sessions,
            params=_PAGE, budget_s=self._budget_s,
        )  # fmt: skip
        return [records.session_from_proto(session) for session in found]

    async def list_projects(self) -> list[records.ProjectInfo]:
        found = await items(
            self._connection, paths.PROJECTS, pb.ListProjectsResponse, lambda page: page.projects,
            params=_PAGE, budget_s=self._budget_s,
        )  # fmt: skip
        return [records.project_from_proto(project) for project in found]

    async def get_project(self, project: str) -> records.ProjectInfo:
        path = paths.of(paths.PROJECT, project=project)
        return records.project_from_proto(await self._call("GET", path, pb.Project))

    async def create_project(self, project: str, quotas: records.Quotas) -> records.ProjectInfo:
        request = pb.CreateProjectRequest(project=project, quotas=records.quotas_to_proto(quotas))
        made = await self._call("POST", paths.PROJECTS, pb.Project, message=request, repeatable=False)
        return records.project_from_proto(made)

    async def set_quotas(self, project: str, quotas: records.Quotas) -> records.ProjectInfo:
        path = paths.of(paths.PROJECT, project=project)
        changed = await self._call("PUT", path, pb.Project, message=pb.Project(quotas=records.quotas_to_proto(quotas)))
        return records.project_from_proto(changed)

    async def delete_project(self, project: str) -> None:
        await self._call("DELETE", paths.of(paths.PROJECT, project=project), common_pb2.Empty, repeatable=False)

    async def list_keys(self) -> list[records.KeyInfo]:
        found = await items(
            self._connection, paths.KEYS, pb.ListKeysResponse, lambda page: page.keys,
            params=_PAGE, budget_s=self._budget_s,
        )  # fmt: skip
        return [records.key_from_proto(key) for key in found]

    async def create_key(self, request: pb.CreateKeyRequest) -> records.CreatedKey:
        # Not repeatable: the secret of a first key whose answer was lost would be nobody's, and the key would stay.
        made = await self._call("POST", paths.KEYS, pb.CreatedKey, message=request, repeatable=False)
        return records.CreatedKey(records.key_from_proto(made.key), made.secret)

    async def revoke_key(self, key_id: str) -> None:
        await self._call("DELETE", paths.of(paths.KEY, key_id=key_id), common_pb2.Empty)

    async def usage(
        self, *, by: str, since: date | None, until: date | None, project: str | None, run_id: str | None
    ) -> list[records.Usage]:
        days = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        given = {"by": by, "project": project, "run_id": run_id, **days}
        params = {name: value for name, value in given.items() if value}
        found = await items(
            self._connection, paths.USAGE, pb.ListUsageResponse, lambda page: page.usage,
            params=_PAGE | params, budget_s=self._budget_s,
        )  # fmt: skip
        return [records.usage_from_proto(usage) for usage in found]

    async def read_log(self, name: str, *, tail: int | None) -> str:
        return "".join([text async for text in self.log_text(name, tail=tail)])

    def log_text(self, name: str, *, tail: int | None, follow: bool = False) -> AsyncGenerator[str, None]:
        from farstep._log_text import log_text

        return log_text(self._connection.url, self._connection.key, name, tail=tail, follow=follow)

    async def status(self) -> pb.Status:
        return await self._call("GET", paths.STATUS, pb.Status)

    async def _call(
        self, method: str, path: str, reply: type[M], *, message: Message | None = None, repeatable: bool = True
    ) -> M:
        return await self._connection.call(
            method, path, reply, message=message, budget_s=self._budget_s, repeatable=repeatable
        )
