"""What the SDK says to a control plane: sessions and provisioning.

Lives on the background loop. It knows nothing of training or sampling.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from farstep import _retry
from farstep._awake import clock
from farstep._connection import MAX_PARKED_S, Connection
from farstep._convert import lora_from_proto
from farstep.errors import ProvisioningError, ResultTimeout
from farstep.results import RunInfo, ServerCapabilities, SupportedModel
from farstep_proto import paths
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import control_pb2 as pb

PAUSE_S = 0.5


class ControlPlane:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def shared(self) -> ControlPlane:
        """For one more user, who releases its connection in turn."""
        return ControlPlane(Connection.take(self.connection.address, self.connection.key))

    async def create_session(self, request: pb.CreateSessionRequest) -> str:
        session = await self.connection.call(
            "POST",
            paths.SESSIONS,
            pb.Session,
            message=request,
            budget_s=_retry.CONNECT_BUDGET_S,
            headers=_once(),
        )
        return session.session_id

    async def provision_run(
        self, session_id: str, request: pb.ProvisionRunRequest, *, timeout_s: float, ready_timeout_s: float
    ) -> pb.ProvisionedRun:
        """A run whose trainer is ready."""
        run = await self.connection.call(
            "POST",
            paths.of(paths.SESSION_RUNS, session_id=session_id),
            pb.ProvisionedRun,
            message=request,
            budget_s=timeout_s,
            headers=_once(),
        )
        return await self.until_ready(run, timeout_s=timeout_s, ready_timeout_s=ready_timeout_s)

    async def until_ready(
        self, run: pb.ProvisionedRun, *, timeout_s: float | None = None, ready_timeout_s: float
    ) -> pb.ProvisionedRun:
        """Waits for a run that is being provisioned, and wakes one that was put to sleep.

        Raises:
            ProvisioningError: it will not be ready.
            ResultTimeout: it is not yet.
        """
        deadline = clock() + ready_timeout_s
        while run.state in ("provisioning", "inactive"):
            wait_s = _left_s(deadline, f"run {run.run_id}", ready_timeout_s)
            was_inactive = run.state == "inactive"
            run = await self.get_run(run.run_id, wait_s=wait_s, budget_s=timeout_s)
            if was_inactive and run.state == "inactive":
                await asyncio.sleep(PAUSE_S)  # looking wakes it; no need to look all the time
        if run.state != "ready":
            raise ProvisioningError(f"run {run.run_id} is {run.state}: {run.message}")
        return run

    async def provision_sampler(
        self, session_id: str, request: pb.ProvisionSamplerRequest, *, ready_timeout_s: float
    ) -> pb.ProvisionedSampler:
        sampler = await self.connection.call(
            "POST",
            paths.of(paths.SESSION_SAMPLERS, session_id=session_id),
            pb.ProvisionedSampler,
            message=request,
            headers=_once(),
        )
        deadline = clock() + ready_timeout_s
        path = paths.of(paths.SAMPLER, sampler_id=sampler.sampler_id)
        while sampler.state == "provisioning":
            wait_s = _left_s(deadline, f"sampler {sampler.sampler_id}", ready_timeout_s)
            sampler = await self.connection.call("GET", path, pb.ProvisionedSampler, wait_s=wait_s)
        if sampler.state != "ready":
            raise ProvisioningError(f"sampler {sampler.sampler_id} is {sampler.state}: {sampler.message}")
        return sampler

    async def get_run(
        self, run_id: str, *, wait_s: float | None = None, budget_s: float | None = None
    ) -> pb.ProvisionedRun:
        path = paths.of(paths.RUN, run_id=run_id)
        return await self.connection.call("GET", path, pb.ProvisionedRun, wait_s=wait_s, budget_s=budget_s)

    async def delete_run(self, run_id: str) -> None:
        await self.connection.call("DELETE", paths.of(paths.RUN, run_id=run_id), common_pb2.Empty)

    async def close_session(self, session_id: str) -> None:
        """Ends what was started for this session alone, such as fresh samplers."""
        path = paths.of(paths.SESSION, session_id=session_id)
        await self.connection.call("DELETE", path, common_pb2.Empty, budget_s=_retry.CONNECT_BUDGET_S)

    async def get_capabilities(self) -> ServerCapabilities:
        return _capabilities(await self.connection.call("GET", paths.CAPABILITIES, pb.Capabilities))


def run_from_proto(message: pb.ProvisionedRun) -> RunInfo:
    return RunInfo(
        run_id=message.run_id,
        session_id=message.session_id,
        state=message.state,
        message=message.message,
        base_model=message.base_model,
        lora=lora_from_proto(message.lora),
        name=message.name,
        user_metadata=dict(message.user_metadata),
        created_at=datetime.fromtimestamp(message.created_at, UTC),
        project=message.project,
    )


def _capabilities(message: pb.Capabilities) -> ServerCapabilities:
    models = tuple(
        SupportedModel(model.model_name, model.max_context_length, model.warm) for model in message.supported_models
    )
    return ServerCapabilities(
        supported_models=models,
        loss_fns=tuple(message.loss_fns),
        engines=tuple(message.engines),
        accelerator=message.accelerator,
        max_request_bytes=message.max_request_bytes,
        max_lora_rank=message.max_lora_rank,
        any_hub_model=message.any_hub_model,
        version=message.version,
    )


def _left_s(deadline: float, what: str, ready_timeout_s: float) -> float:
    left_s = deadline - clock()
    if left_s <= 0:
        raise ResultTimeout(
            f"{what} was not ready after {ready_timeout_s:g} s", hint="it goes on starting; ask for it again later"
        )
    return min(left_s, MAX_PARKED_S)


def _once() -> Mapping[str, str]:
    """The header by which a repeated creation is known as the same one."""
    return {paths.IDEMPOTENCY_KEY: uuid.uuid4().hex}
