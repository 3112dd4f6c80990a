"""Fresh samplers: a stack of samplers alone for one sampling client, gone with its session."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control import quotas, requests
from farstep_infra.control.db import Database
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.idempotency import Once
from farstep_infra.control.pages import PageRequest, read_page
from farstep_infra.control.projects import hold
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.residency import Residency
from farstep_infra.control.scope import find, visible
from farstep_infra.control.sessions import find_open
from farstep_infra.control.stacks import Stack
from farstep_infra.control.tables import RunRow, SamplerRow, SessionRow
from farstep_infra.launchers.base import LaunchFailed
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.errors import ApiError, InvalidInput, NotFound, Unavailable
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import Caller

log = logging.getLogger(__name__)

STATES = ("provisioning", "ready", "inactive", "failed")
_BEFORE_STACKS = "it ended with the older version of the control plane that had started it"


class FreshSamplers:
    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        residency: Residency,
        provisioning: Provisioning,
        store: CheckpointStore,
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._residency = residency
        self._provisioning = provisioning
        self._store = store
        self._entering = asyncio.Lock()  # a sampler is entered whole before a closing session is searched for it

    async def restore(self) -> None:
        """At the start of a control plane: what an earlier one began is gone on with."""
        lost = update(SamplerRow).where(SamplerRow.stack_id.is_(None), SamplerRow.state != "failed")
        async with self._db.transaction() as db:
            await db.execute(lost.values(state="failed", message=_BEFORE_STACKS))
            begun = (await db.execute(select(SamplerRow).where(SamplerRow.state == "provisioning"))).scalars().all()
        for row in begun:
            self._provisioning.start(row.sampler_id, self._provision(row))

    async def create(
        self, session_id: str, request: control_pb2.ProvisionSamplerRequest, *, caller: Caller, once: Once
    ) -> control_pb2.ProvisionedSampler:
        """Begins to provision; the answer is in state "provisioning".

        Raises:
            InvalidInput: naming the field.
            NotFound: no open session of that id, or no such checkpoint, that the caller may see.
            QuotaExceeded: the project has as many as it may have.
            TooManyRequests: so many base models are loaded, and all of them are in use.
        """
        base_model = await self._base_model(request, caller)
        row = SamplerRow(
            sampler_id=f"sampler-{secrets.token_hex(8)}",
            session_id=session_id,
            state="provisioning",
            message="",
            base_model=base_model,
            model_path=request.model_path,
            created_at=time.time(),
            replicas=max(1, request.replicas),
        )
        await self._residency.check_room()
        async with self._entering:
            try:
                async with self._db.transaction() as db:
                    if earlier := await once.answered(db, control_pb2.ProvisionedSampler):
                        return earlier
                    session = await find_open(db, session_id, caller, lock=True)
                    project = await hold(db, session.project)
                    await quotas.refuse_another(db, project, "max_samplers")
                    quotas.refuse_replicas(project, "max_sampler_replicas", row.replicas)
                    row.project, session.last_seen_at = session.project, row.created_at
                    db.add(row)
                    answer = self._to_proto(row)
                    await once.keep(db, answer)
            except Unavailable:  # whether it was entered nobody knows before the database is back
                self._provisioning.start(row.sampler_id, self._provision_if_entered(row))
                raise
            self._provisioning.start(row.sampler_id, self._provision(row))
        return answer

    async def get(self, sampler_id: str, *, caller: Caller, wait_s: float = 0.0) -> control_pb2.ProvisionedSampler:
        """Who waits, up to `wait_s` seconds, has a use for it: it is woken where it rests.

        Raises:
            NotFound: no such sampler that the caller may see.
            TooManyRequests: it rests, so many base models are loaded, and all of them are in use.
        """
        row = await self._row(sampler_id, caller)
        if wait_s > 0:
            await self._want(row)
            await self._provisioning.wait(sampler_id, wait_s)
            row = await self._row(sampler_id, caller)
        return self._to_proto(row)

    async def list(
        self, page: PageRequest, *, caller: Caller, project: str = "", state: str = ""
    ) -> control_pb2.ListProvisionedSamplersResponse:
        """Those that the caller may see, oldest first."""
        query = visible(select(SamplerRow), caller, SamplerRow.project)
        for column, wanted in ((SamplerRow.project, project), (SamplerRow.state, state)):
            if wanted:
                query = query.where(column == wanted)
        order = (SamplerRow.created_at, SamplerRow.sampler_id)
        async with self._db.reading() as db:
            rows, following = await read_page(db, query, order, page)
        return control_pb2.ListProvisionedSamplersResponse(
            samplers=[self._to_proto(row) for row in rows], next_page=following
        )

    async def stop(self, sampler_id: str, *, caller: Caller) -> None:
        """Stops and forgets one, whoever uses it.

        Raises:
            NotFound: no such sampler that the caller may see.
        """
        await self._stop(await self._row(sampler_id, caller))

    async def stop_all_of(self, session_id: str) -> None:
        """Stops and forgets a closed session's samplers, those that are being provisioned as well."""
        async with self._entering, self._db.reading() as db:
            rows = (await db.execute(select(SamplerRow).where(SamplerRow.session_id == session_id))).scalars().all()
        await asyncio.gather(*(self._stop(row) for row in rows))

    async def stop_all_of_closed(self) -> None:
        """The same for every session that is closed, where somebody was hindered from doing it."""
        query = select(SamplerRow.session_id).join(SessionRow, SessionRow.session_id == SamplerRow.session_id)
        async with self._db.reading() as db:
            found = (await db.execute(query.where(SessionRow.closed_at.is_not(None)).distinct())).scalars().all()
        for session_id in found:
            await self.stop_all_of(session_id)

    async def _stop(self, row: SamplerRow) -> None:
        await self._provisioning.cancel(row.sampler_id)
        async with self._db.reading() as db:
            query = select(SamplerRow.stack_id).where(SamplerRow.sampler_id == row.sampler_id)
            stack_id = (await db.execute(query)).scalar()  # it may have come since
        stack = self._fleet.find(stack_id or "")
        if stack is not None:
            await self._fleet.remove(stack)
        async with self._db.transaction() as db:
            await db.execute(delete(SamplerRow).where(SamplerRow.sampler_id == row.sampler_id))

    async def _row(self, sampler_id: str, caller: Caller) -> SamplerRow:
        async with self._db.reading() as db:
            row = await find(db, SamplerRow, sampler_id, caller)
        if row is None:
            raise NotFound(f"no sampler {sampler_id!r}", field="sampler_id")
        return row

    async def _base_model(self, request: control_pb2.ProvisionSamplerRequest, caller: Caller) -> str:
        served = self._fleet.served
        path = requests.check_sampler(request)
        if request.base_model or path is None:
            served.check(request.base_model)
        if path is None:
            return request.base_model
        if not caller.is_operator:  # who may use every checkpoint, also of runs that no control plane made
            async with self._db.reading() as db:
                is_theirs = await find(db, RunRow, path.run_id, caller) is not None
            if not (is_theirs or await asyncio.to_thread(self._store.is_public, path)):
                raise NotFound(f"no checkpoint {path}", field="path")
        manifest = await asyncio.to_thread(self._store.manifest, path)
        saved = str(manifest.meta.get("base_model", ""))
        if request.base_model and served.resolve(request.base_model) != served.resolve(saved):
            raise InvalidInput(f"the checkpoint is of {saved!r}, not of {request.base_model!r}", field="base_model")
        served.check(saved)
        return request.base_model or saved

    async def _want(self, row: SamplerRow) -> None:
        stack = self._fleet.find(row.stack_id or "")
        if row.state not in ("ready", "inactive") or stack is None:
            return
        stack.touch()
        if stack.is_up or self._provisioning.has(row.sampler_id):
            return
        await self._residency.check_room(stack)
        self._provisioning.start(row.sampler_id, self._residency.wake_quietly(stack))

    async def _provision_if_entered(self, row: SamplerRow) -> None:
        if await self._db.insist(lambda db: db.get(SamplerRow, row.sampler_id)) is not None:
            await self._provision(row)

    async def _provision(self, row: SamplerRow) -> None:
        try:
            stack = await self._stack_of(row)
            await self._residency.wake(stack, num_samplers=row.replicas)
        except LaunchFailed as error:
            await self._fail(row, str(error))
        except ApiError as error:
            await self._fail(row, error.message)
        except Exception as error:
            log.exception("provisioning %s", row.sampler_id)
            await self._fail(row, f"the control plane made a mistake ({error!r}); its log has the details")
        else:
            await self._settle(row.sampler_id, "ready", "")

    async def _fail(self, row: SamplerRow, message: str) -> None:
        await self._settle(row.sampler_id, "failed", message)
        if (stack := self._fleet.find(row.stack_id or "")) is not None:
            await self._fleet.remove(stack)

    async def _stack_of(self, row: SamplerRow) -> Stack:
        if (stack := self._fleet.find(row.stack_id or "")) is not None:
            return stack
        stack = await self._fleet.own(row.base_model, num_trainers=0, model_path=row.model_path)
        row.stack_id = stack.spec.stack_id
        this = update(SamplerRow).where(SamplerRow.sampler_id == row.sampler_id)
        await self._db.insist(lambda db: db.execute(this.values(stack_id=row.stack_id)))
        return stack

    async def _settle(self, sampler_id: str, state: str, message: str) -> None:
        async def write(db: AsyncSession) -> None:
            this = SamplerRow.sampler_id == sampler_id
            await db.execute(update(SamplerRow).where(this).values(state=state, message=message))

        await self._db.insist(write)

    def _to_proto(self, row: SamplerRow) -> control_pb2.ProvisionedSampler:
        sampler = control_pb2.ProvisionedSampler(
            sampler_id=row.sampler_id,
            session_id=row.session_id,
            project=row.project,
            created_at=row.created_at,
            state=row.state,
            message=row.message,
            base_model=row.base_model,
            model_path=row.model_path,
        )
        stack = self._fleet.find(row.stack_id or "")
        if row.state != "ready" or stack is None:
            return sampler
        sampler.message = "; ".join(stack.troubles())
        match stack.condition:
            case "ready":
                sampler.sampler_url = stack.sampler_url
            case "starting":
                sampler.state = "provisioning"
                sampler.sampler_url = stack.sampler_url
            case "inactive" | "failed" as state:
                sampler.state = state
        return sampler
