"""Fresh samplers: one set of processes for one sampling client, gone with its session."""

from __future__ import annotations

import asyncio
import logging
import secrets

from sqlalchemy import select, update

from farstep_infra.control import requests
from farstep_infra.control.db import Database, SamplerRow
from farstep_infra.control.fleet import Fleet, Samplers
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.sessions import Sessions
from farstep_infra.launchers.local import LaunchFailed
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.v1 import control_pb2

log = logging.getLogger(__name__)


class FreshSamplers:
    def __init__(
        self, db: Database, fleet: Fleet, sessions: Sessions, provisioning: Provisioning, store: CheckpointStore
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._sessions = sessions
        self._provisioning = provisioning
        self._store = store
        self._running: dict[str, Samplers] = {}
        self._entering = asyncio.Lock()  # a sampler is entered whole before a closing session is searched for it

    async def mark_lost(self) -> None:
        """At the start of a control plane: what an earlier one had running has ended with it."""
        lost = update(SamplerRow).where(SamplerRow.state != "failed")
        async with self._db.transaction() as db:
            await db.execute(lost.values(state="failed", message="it ended with the control plane"))

    async def create(
        self, session_id: str, request: control_pb2.ProvisionSamplerRequest
    ) -> control_pb2.ProvisionedSampler:
        """Begins to provision; the answer is in state "provisioning".

        Raises:
            InvalidInput: naming the field.
            NotFound: no open session of that id, or no such checkpoint.
        """
        base_model = await self._base_model(request)
        row = SamplerRow(
            sampler_id=f"sampler-{secrets.token_hex(8)}",
            session_id=session_id,
            state="provisioning",
            message="",
            base_model=base_model,
            model_path=request.model_path,
        )
        async with self._entering:
            await self._sessions.get(session_id)
            async with self._db.transaction() as db:
                db.add(row)
            self._provisioning.start(row.sampler_id, self._provision(row, max(1, request.replicas)))
        return self._to_proto(row)

    async def get(self, sampler_id: str, *, wait_s: float) -> control_pb2.ProvisionedSampler:
        """Waits up to `wait_s` seconds for one that is being provisioned.

        Raises:
            NotFound: no such sampler.
        """
        await self._provisioning.wait(sampler_id, wait_s)
        async with self._db.transaction() as db:
            row = await db.get(SamplerRow, sampler_id)
        if row is None:
            raise NotFound(f"no sampler {sampler_id!r}", field="sampler_id")
        return self._to_proto(row)

    async def stop_all_of(self, session_id: str) -> None:
        """Stops and forgets a closed session's samplers, those that are being provisioned as well."""
        async with self._entering, self._db.transaction() as db:
            rows = (await db.execute(select(SamplerRow).where(SamplerRow.session_id == session_id))).scalars().all()
        await asyncio.gather(*(self._stop(row) for row in rows))

    async def _stop(self, row: SamplerRow) -> None:
        await self._provisioning.cancel(row.sampler_id)
        samplers = self._running.pop(row.sampler_id, None)
        if samplers is not None:
            await self._fleet.stop(samplers.servers)
        async with self._db.transaction() as db:
            await db.delete(row)

    async def _base_model(self, request: control_pb2.ProvisionSamplerRequest) -> str:
        path = requests.check_sampler(request)
        if path is None:
            return request.base_model
        manifest = await asyncio.to_thread(self._store.manifest, path)
        saved = str(manifest.meta.get("base_model", ""))
        if request.base_model and request.base_model != saved:
            raise InvalidInput(f"the checkpoint is of {saved!r}, not of {request.base_model!r}", field="base_model")
        requests.check_base_model(saved)
        return saved

    async def _provision(self, row: SamplerRow, replicas: int) -> None:
        try:
            samplers = await self._fleet.fresh_samplers(row.base_model, model_path=row.model_path, replicas=replicas)
        except LaunchFailed as error:
            await self._settle(row.sampler_id, "failed", str(error))
        except Exception as error:
            log.exception("provisioning %s", row.sampler_id)
            message = f"the control plane made a mistake ({error!r}); its log has the details"
            await self._settle(row.sampler_id, "failed", message)
        else:
            self._running[row.sampler_id] = samplers
            await self._settle(row.sampler_id, "ready", "")

    async def _settle(self, sampler_id: str, state: str, message: str) -> None:
        async with self._db.transaction() as db:
            row = await db.get_one(SamplerRow, sampler_id)
            row.state, row.message = state, message

    def _to_proto(self, row: SamplerRow) -> control_pb2.ProvisionedSampler:
        sampler = control_pb2.ProvisionedSampler(
            sampler_id=row.sampler_id,
            session_id=row.session_id,
            state=row.state,
            message=row.message,
            base_model=row.base_model,
            model_path=row.model_path,
        )
        running = self._running.get(row.sampler_id)
        if row.state != "ready" or running is None:
            return sampler
        ended = [server.process for server in running.servers if not server.is_running]
        if ended:
            sampler.state, sampler.message = "failed", ended[0].epitaph()
        else:
            sampler.sampler_url = running.url
        return sampler
