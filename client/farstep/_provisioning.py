"""Where trainers and samplers come from: a control plane, or a pair that somebody started by hand.

Lives on the background loop. It finds places and describes checkpoints; the run itself is created on the
trainer, in the same way for both.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from farstep import _retry
from farstep._address import Address, Origin
from farstep._checkpoint_requests import CheckpointRequests
from farstep._connection import Connection
from farstep._control import ControlPlane
from farstep._convert import lora_to_proto
from farstep._keep_alive import KeepAlive
from farstep._settings import ApiKey
from farstep._wanted import WantedRun, WantedSampler
from farstep.errors import FarstepError, InvalidInputError, NotFoundError
from farstep.results import ServerCapabilities, SupportedModel
from farstep_proto import paths
from farstep_proto.v1 import common_pb2, control_pb2

log = logging.getLogger("farstep")

T = TypeVar("T")

READY_S = 3600.0  # for a run that was put to sleep to be there again


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lives; `sampler` is None where it has none.

    `base_model` is what was asked for, `model` what the trainer calls it; both may be unknown.
    """

    run_id: str
    trainer: Address
    sampler: Address | None
    project: str = ""
    base_model: str = ""
    model: str = ""


class Provisioner(Protocol):
    @property
    def key(self) -> ApiKey: ...

    @property
    def control(self) -> ControlPlane | None: ...

    @property
    def session_id(self) -> str | None: ...

    @property
    def checkpoints(self) -> CheckpointRequests: ...

    async def provision_run(self, wanted: WantedRun) -> Place: ...

    async def provision_sampler(self, wanted: WantedSampler) -> Address:
        """The sampler's address."""
        ...

    async def find_run(self, run_id: str) -> Place: ...

    async def delete_run(self, run_id: str) -> None: ...

    async def get_capabilities(self) -> ServerCapabilities: ...

    async def release(self) -> None: ...


class ManagedServers:
    """Provisioned by a control plane, within one session, which is opened again where it was closed over there.

    Args:
        opened_by: what the session was asked for with.
    """

    def __init__(self, control: ControlPlane, session_id: str, *, opened_by: control_pb2.CreateSessionRequest) -> None:
        self.control = control
        self.session_id: str | None = session_id
        self._opened_by = opened_by
        self.checkpoints = CheckpointRequests(control.connection)
        KeepAlive.hold(self._origin, self.key)

    @property
    def key(self) -> ApiKey:
        return self.control.connection.key

    async def provision_run(self, wanted: WantedRun) -> Place:
        request = control_pb2.ProvisionRunRequest(
            base_model=wanted.base_model,
            lora=lora_to_proto(wanted.lora),
            seed=wanted.seed,
            max_seq_len=wanted.max_seq_len or 0,
            replicas=wanted.replicas,
            with_sampler=wanted.with_sampler,
            sampler_replicas=wanted.sampler_replicas,
            name=wanted.name or "",
            user_metadata=wanted.user_metadata,
        )

        def provision(session_id: str) -> Awaitable[control_pb2.ProvisionedRun]:
            return self.control.provision_run(
                session_id, request, timeout_s=wanted.timeout_s, ready_timeout_s=wanted.ready_timeout_s
            )

        return self._place(await self._in_session(provision))

    async def provision_sampler(self, wanted: WantedSampler) -> Address:
        request = control_pb2.ProvisionSamplerRequest(
            base_model=wanted.base_model, model_path=wanted.model_path, replicas=wanted.replicas
        )

        def provision(session_id: str) -> Awaitable[control_pb2.ProvisionedSampler]:
            return self.control.provision_sampler(session_id, request, ready_timeout_s=wanted.ready_timeout_s)

        sampler = await self._in_session(provision)
        return Address(sampler.sampler_url, replace(self._origin, sampler_id=sampler.sampler_id))

    async def find_run(self, run_id: str) -> Place:
        run = await self.control.get_run(run_id)
        if run.state in ("failed", "deleted"):
            raise NotFoundError(f"run {run_id} has no trainer; it is {run.state}: {run.message}")
        return self._place(await self.control.until_ready(run, ready_timeout_s=READY_S))

    async def delete_run(self, run_id: str) -> None:
        await self.control.delete_run(run_id)

    async def get_capabilities(self) -> ServerCapabilities:
        return await self.control.get_capabilities()

    async def release(self) -> None:
        KeepAlive.end(self._origin, self.key)
        KeepAlive.release(self._origin, self.key)
        try:
            await self.control.close_session(self._origin.session_id)
        except FarstepError as error:  # the control plane is gone, and with it all that it started
            log.debug("session %s was not closed: %s", self.session_id, error)
        await self.control.connection.release()

    @property
    def _origin(self) -> Origin:
        assert self.session_id is not None
        return Origin(self.control.connection.url, self.session_id)

    async def _in_session(self, call: Callable[[str], Awaitable[T]]) -> T:
        """What is asked for within the session; a laptop may have slept until the control plane took it for dead."""
        closed = self._origin
        try:
            return await call(closed.session_id)
        except NotFoundError as error:
            if error.field != "session_id":
                raise
        request = control_pb2.CreateSessionRequest()
        request.CopyFrom(self._opened_by)
        request.reuse_from_session_id = closed.session_id
        session_id = await self.control.create_session(request)
        log.warning("session %s was closed at the control plane: going on as %s", closed.session_id, session_id)
        KeepAlive.end(closed, self.key)
        KeepAlive.release(closed, self.key)
        self.session_id = session_id
        KeepAlive.hold(self._origin, self.key)
        return await call(session_id)

    def _place(self, run: control_pb2.ProvisionedRun) -> Place:
        origin = replace(self._origin, run_id=run.run_id)
        sampler = Address(run.sampler_url, replace(origin, is_sampler=True)) if run.sampler_url else None
        trainer = Address(run.trainer_url, origin)
        return Place(run.run_id, trainer, sampler, run.project, run.base_model, run.model)


class LocalPair:
    """A trainer and a sampler that are running already. Run ids are made here."""

    control = None
    session_id = None

    def __init__(self, *, trainer_url: str, sampler_url: str, key: ApiKey) -> None:
        self._trainer = Connection.take(Address(trainer_url), key)
        self._sampler = Connection.take(Address(sampler_url), key)
        self.checkpoints = CheckpointRequests(self._trainer)

    @property
    def key(self) -> ApiKey:
        return self._trainer.key

    async def provision_run(self, wanted: WantedRun) -> Place:
        return self._place(f"run_{uuid.uuid4().hex[:12]}")

    async def provision_sampler(self, wanted: WantedSampler) -> Address:
        info = await self._sampler.load_info(budget_s=_retry.CONNECT_BUDGET_S)
        if wanted.base_model and wanted.base_model != info.base_model:
            raise InvalidInputError(
                f"the sampler at {self._sampler.url} serves {info.base_model!r}, not {wanted.base_model!r}",
                field="base_model",
            )
        return self._sampler.address

    async def find_run(self, run_id: str) -> Place:
        return self._place(run_id)

    async def delete_run(self, run_id: str) -> None:
        await self._trainer.call("DELETE", paths.of(paths.RUN, run_id=run_id), common_pb2.Empty)

    async def get_capabilities(self) -> ServerCapabilities:
        trainer = await self._trainer.load_info()
        sampler = await self._sampler.load_info()
        return ServerCapabilities(
            supported_models=(SupportedModel(trainer.base_model, trainer.max_seq_len, warm=True),),
            loss_fns=tuple(trainer.loss_fns),
            engines=(sampler.engine,) if sampler.engine else (),
            accelerator=trainer.device,
            max_request_bytes=trainer.max_request_bytes,
            max_lora_rank=None,
            any_hub_model=False,
            version=trainer.version,
        )

    async def release(self) -> None:
        await self._sampler.release()
        await self._trainer.release()

    def _place(self, run_id: str) -> Place:
        return Place(run_id, self._trainer.address, self._sampler.address)
