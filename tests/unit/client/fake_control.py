"""A control plane that provisions nothing new: it hands out the fake trainer and sampler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from farstep_proto import errors, paths
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing
from farstep_serving.messages import read_message, respond, wait_s_of
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, MAX_SEQ_LEN, Host, Server
from tests.unit.client.fake_trainer import Trainer


class ControlPlane(Server):
    def __init__(self, host: Host, trainer: Trainer, sampler: Sampler) -> None:
        self.trainer = trainer
        self.sampler = sampler
        self.sessions: list[control_pb2.CreateSessionRequest] = []
        self.closed_sessions: list[str] = []
        self.runs: dict[str, control_pb2.ProvisionedRun] = {}
        self.provisioned: list[control_pb2.ProvisionRunRequest] = []
        self.fails_with = ""
        self.is_stuck = False
        self.logs: dict[str, list[bytes]] = {}  # by process; what it writes after the first piece comes to who follows
        self.heartbeats: list[tuple[str, list[str]]] = []
        self._answered: dict[str, control_pb2.ProvisionedRun] = {}
        super().__init__(host)

    def make_app(self) -> ASGIApp:
        return make_app(
            [
                Route(paths.SESSIONS, self._create_session, methods=["POST"]),
                Route(paths.SESSION, self._close_session, methods=["DELETE"]),
                Route(paths.SESSION_HEARTBEAT, self._heartbeat, methods=["POST"]),
                Route(paths.CHECKPOINT, self.trainer.get_checkpoint),
                Route(paths.SESSION_RUNS, self._provision_run, methods=["POST"]),
                Route(paths.SESSION_SAMPLERS, self._provision_sampler, methods=["POST"]),
                Route(paths.SAMPLER, self._get_sampler),
                Route(paths.RUNS, self._list_runs),
                Route(paths.RUN, self._get_run, methods=["GET"]),
                Route(paths.RUN, self._delete_run, methods=["DELETE"]),
                Route(paths.RUN_CHECKPOINTS, self._list_checkpoints),
                Route(paths.CHECKPOINT_ARCHIVE, self._archive),
                Route(paths.CAPABILITIES, self._capabilities),
                Route(paths.STATUS, self._status),
                Route(paths.PROCESS_LOG, self._log),
            ],
            keys=KeyRing.of(KEY),
        )

    async def _create_session(self, request: Request) -> Response:
        self.sessions.append(await read_message(request, control_pb2.CreateSessionRequest))
        return respond(request, control_pb2.Session(session_id=f"session-{len(self.sessions)}"))

    async def _close_session(self, request: Request) -> Response:
        self.closed_sessions.append(request.path_params["session_id"])
        return respond(request, common_pb2.Empty())

    async def _heartbeat(self, request: Request) -> Response:
        session_id = self._open_session(request)
        message = await read_message(request, control_pb2.HeartbeatRequest)
        self.heartbeats.append((session_id, list(message.run_ids)))
        return respond(request, control_pb2.Session(session_id=session_id))

    def _open_session(self, request: Request) -> str:
        session_id: str = request.path_params["session_id"]
        if session_id in self.closed_sessions:
            raise errors.NotFound(f"no session {session_id}", field="session_id")
        return session_id

    async def _provision_run(self, request: Request) -> Response:
        key = request.headers[paths.IDEMPOTENCY_KEY]
        if key in self._answered:
            return respond(request, self._answered[key], status=202)
        session_id = self._open_session(request)
        message = await read_message(request, control_pb2.ProvisionRunRequest)
        self.provisioned.append(message)
        run = control_pb2.ProvisionedRun(
            run_id=f"run_{len(self.runs) + 1:012x}",
            session_id=session_id,
            state="provisioning",
            base_model=message.base_model,
            lora=message.lora,
            name=message.name,
            user_metadata=message.user_metadata,
            created_at=1e9,
            project="team",
        )
        self.runs[run.run_id] = self._answered[key] = run
        return respond(request, run, status=202)

    async def _get_run(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["run_id"])
        if run is None:
            raise errors.NotFound("no such run", field="run_id")
        if self.fails_with:
            run.state, run.message = "failed", self.fails_with
        elif self.is_stuck:
            await asyncio.sleep(wait_s_of(request, most=60))
        elif run.state in ("provisioning", "inactive"):
            run.state, run.trainer_url, run.sampler_url = "ready", self.trainer.url, self.sampler.url
        return respond(request, run)

    async def _delete_run(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        if run_id not in self.runs:
            raise errors.NotFound("no such run", field="run_id")
        del self.runs[run_id]
        return respond(request, common_pb2.Empty())

    async def _list_runs(self, request: Request) -> Response:
        return respond(request, control_pb2.ListProvisionedRunsResponse(runs=list(self.runs.values())))

    async def _provision_sampler(self, request: Request) -> Response:
        message = await read_message(request, control_pb2.ProvisionSamplerRequest)
        answer = control_pb2.ProvisionedSampler(
            sampler_id="sampler-1", state="provisioning", base_model=message.base_model, model_path=message.model_path
        )
        return respond(request, answer, status=202)

    async def _get_sampler(self, request: Request) -> Response:
        url = self.sampler.url
        return respond(request, control_pb2.ProvisionedSampler(sampler_id="sampler-1", state="ready", sampler_url=url))

    async def _list_checkpoints(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        kept = [checkpoint for checkpoint in self.trainer.checkpoints.values() if checkpoint.run_id == run_id]
        return respond(request, control_pb2.ListCheckpointsResponse(checkpoints=kept))

    async def _archive(self, request: Request) -> Response:
        """One file a page."""
        names = ["adapter_config.json", "adapter_model.safetensors"]
        page = int(request.query_params.get("page") or 0)
        file = control_pb2.ArchiveFile(name=names[page], url=f"http://files/{page}?sig=x", size_bytes=3, sha256="ab")
        parts = request.path_params
        archive = control_pb2.CheckpointArchive(
            checkpoint_id=f"{parts['run_id']}/{parts['kind']}/{parts['name']}",
            files=[file],
            expires_at=2e9,
            next_page=str(page + 1) if page + 1 < len(names) else "",
        )
        return respond(request, archive)

    async def _capabilities(self, request: Request) -> Response:
        model = control_pb2.SupportedModel(model_name=BASE_MODEL, max_context_length=MAX_SEQ_LEN, warm=True)
        return respond(request, control_pb2.Capabilities(supported_models=[model], max_lora_rank=64, version="1"))

    async def _status(self, request: Request) -> Response:
        processes = [control_pb2.ProcessStatus(name=name, role="trainer", log_path=f"/{name}") for name in self.logs]
        control = control_pb2.ProcessStatus(name="control", role="control")
        return respond(request, control_pb2.Status(processes=[control, *processes]))

    async def _log(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.logs:
            raise errors.NotFound(f"no process {name!r}", field="name")
        written, *coming = self.logs[name]
        tail = int(request.query_params.get("tail") or 1000)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"".join(written.splitlines(keepends=True)[-tail:])
            for piece in coming if request.query_params.get("follow") else []:
                yield piece
            if self.is_stuck:
                await asyncio.Event().wait()

        return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")
