"""Which stack a run is on: chosen once, woken when somebody needs the run, let go with it."""

from __future__ import annotations

import asyncio
import logging
import time

from sqlalchemy import select, update

from farstep_infra.control.db import Database
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.residency import LIVE_S, Residency
from farstep_infra.control.stacks import Stack
from farstep_infra.control.tables import RunRow, SessionRow
from farstep_infra.control.trainers import Trainers
from farstep_infra.control.uses import Uses
from farstep_infra.launchers.base import LaunchFailed
from farstep_proto.errors import ApiError
from farstep_proto.v1 import control_pb2

log = logging.getLogger(__name__)

_RESTS = "nobody has used it for a while; it is back as soon as somebody waits for it, with nothing lost"
_NO_STACK = "the control plane does not know its processes any more; its checkpoints are kept"


class RunStacks:
    """Args: `trainers` is who tells a trainer that a run has been deleted."""

    def __init__(
        self,
        db: Database,
        fleet: Fleet,
        residency: Residency,
        provisioning: Provisioning,
        uses: Uses,
        trainers: Trainers,
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._residency = residency
        self._provisioning = provisioning
        self._uses = uses
        self._trainers = trainers

    async def check_room(self, request: control_pb2.ProvisionRunRequest) -> None:
        """Whether there is a place for such a run now.

        Raises:
            TooManyRequests: so many base models are loaded, and all of them are in use.
        """
        is_own = request.replicas > 1
        await self._residency.check_room(None if is_own else self._fleet.find_shared(request.base_model))

    async def provision(self, row: RunRow) -> None:
        """Brings a run from "provisioning" to "ready", or to "failed" with the reason."""
        request = control_pb2.ProvisionRunRequest.FromString(row.request)
        num_samplers = max(1, request.sampler_replicas) if request.with_sampler else 0
        try:
            await self._come_up(row, request, num_samplers)
        except LaunchFailed as error:
            await self._settle(row.run_id, "failed", str(error))
        except ApiError as error:
            await self._settle(row.run_id, "failed", error.message)
        except Exception as error:
            log.exception("provisioning %s", row.run_id)
            message = f"the control plane made a mistake ({error!r}); its log has the details"
            await self._settle(row.run_id, "failed", message)
        else:
            await self._settle(row.run_id, "ready", "")

    async def want(self, row: RunRow) -> None:
        """Has a run's stack come up, where it does not run; `Provisioning` knows when it has, by the run's id.

        Raises:
            TooManyRequests: so many base models are loaded, and all of them are in use.
        """
        stack = self._fleet.find(row.stack_id or "")
        if row.state not in ("ready", "inactive") or stack is None:
            return
        stack.touch()
        if row.state == "inactive":
            await self._settle(row.run_id, "ready", "")
        if stack.is_up or self._provisioning.has(row.run_id):
            return
        await self._residency.check_room(stack)
        self._provisioning.start(row.run_id, self._residency.wake_quietly(stack))

    async def deactivate(self, row: RunRow) -> None:
        """Marks a run as not needed; its stack rests as well, unless others need that or it has work to do."""
        stack = self._fleet.find(row.stack_id or "")
        this = update(RunRow).where(RunRow.run_id == row.run_id)
        async with self._db.transaction() as db:
            await db.execute(this.values(state="inactive", message=_RESTS, deactivated_at=time.time()))
        if stack is None or not stack.is_loaded:
            return
        others_seen_at = await self._uses.last_seen_but(stack.spec.stack_id, run_id=row.run_id)
        if others_seen_at < time.time() - LIVE_S:
            await self._residency.rest(stack, unused_s=0.0)

    async def delete_on_trainer(self, row: RunRow) -> None:
        """Where the trainer runs; the run is not on its stack any more then.

        Raises:
            Internal: it runs and does not delete it.
        """
        stack = self._fleet.find(row.stack_id or "")
        if stack is None or stack.trainer is None or stack.condition != "ready":
            return
        await self._trainers.delete_run(stack.trainer.url, row.run_id)
        if stack.spec.is_shared:
            row.stack_id = ""

    async def release(self, row: RunRow) -> None:
        """After the end of a run: its own stack goes; a trainer that was away hears of it when it is back."""
        stack = self._fleet.find(row.stack_id or "")
        if stack is None or stack.trainer is None:
            return
        if not stack.spec.is_shared and not await self._others_on(stack, but=row.run_id):
            await self._fleet.remove(stack)
        elif stack.is_loaded:
            try:
                await stack.come_up()
                await self._forget_deleted(stack)
            except (LaunchFailed, ApiError) as error:
                log.warning("%s will hear later that %s is deleted: %s", stack.trainer.place.name, row.run_id, error)

    async def woken(self, stack: Stack) -> None:
        """A stack is up that was not: what it has missed is made good."""
        this = update(RunRow).where(RunRow.stack_id == stack.spec.stack_id)
        rests = (RunRow.state == "inactive", RunRow.deactivated_at.is_(None))
        async with self._db.transaction() as db:
            await db.execute(this.where(*rests).values(state="ready", message=""))
        await self._forget_deleted(stack)

    async def rested(self, stack: Stack) -> None:
        """A stack has been stopped because nobody used it."""
        this = update(RunRow).where(RunRow.stack_id == stack.spec.stack_id, RunRow.state == "ready")
        async with self._db.transaction() as db:
            await db.execute(this.values(state="inactive", message=_RESTS))

    async def _come_up(self, row: RunRow, request: control_pb2.ProvisionRunRequest, num_samplers: int) -> None:
        stack = self._fleet.find(row.stack_id or "") or await self._earlier(row, request)
        if stack is not None:
            try:
                await self._bind(row, stack)
                await self._residency.wake(stack, num_samplers=num_samplers)
                return
            except LaunchFailed as error:
                if stack.spec.is_shared:
                    raise
                log.warning("%s does not take over %s: %s", row.run_id, stack.spec.stack_id, error)
        if request.replicas <= 1:
            stack = await self._fleet.shared(request.base_model)
        else:
            stack = await self._fleet.own(request.base_model, num_trainers=request.replicas)
        await self._bind(row, stack)
        try:
            await self._residency.wake(stack, num_samplers=num_samplers)
        except BaseException:
            if not stack.spec.is_shared:
                await asyncio.shield(self._fleet.remove(stack))
            raise

    async def _earlier(self, row: RunRow, request: control_pb2.ProvisionRunRequest) -> Stack | None:
        """The stack of the session that this one takes over from, if it is of the same kind and not broken."""
        if request.replicas <= 1:
            return None  # all such runs share one
        earlier = select(SessionRow.reuse_from_session_id).where(SessionRow.session_id == row.session_id)
        query = (
            select(RunRow)
            .where(RunRow.session_id == earlier.scalar_subquery(), RunRow.base_model == row.base_model)
            .order_by(RunRow.created_at.desc())
        )
        async with self._db.reading() as db:
            runs = (await db.execute(query)).scalars().all()
        for run in runs:
            stack = self._fleet.find(run.stack_id or "")
            if stack is None or stack.spec.is_shared or stack.condition == "failed":
                continue
            if stack.spec.num_trainers == request.replicas:
                return stack
        return None

    async def _bind(self, row: RunRow, stack: Stack) -> None:
        row.stack_id = stack.spec.stack_id
        this = update(RunRow).where(RunRow.run_id == row.run_id)
        await self._db.insist(lambda db: db.execute(this.values(stack_id=row.stack_id)))

    async def _others_on(self, stack: Stack, *, but: str) -> bool:
        others = (RunRow.stack_id == stack.spec.stack_id, RunRow.run_id != but, RunRow.state != "deleted")
        async with self._db.reading() as db:
            return (await db.execute(select(RunRow.run_id).where(*others).limit(1))).first() is not None

    async def _forget_deleted(self, stack: Stack) -> None:
        """Tells the trainer of runs that were deleted while it was away; those that it knows of are on it no more."""
        if stack.trainer is None:
            return
        deleted = (RunRow.stack_id == stack.spec.stack_id, RunRow.state == "deleted")
        async with self._db.reading() as db:
            run_ids = (await db.execute(select(RunRow.run_id).where(*deleted))).scalars().all()
        for run_id in run_ids:
            await self._trainers.delete_run(stack.trainer.url, run_id)
            async with self._db.transaction() as db:
                await db.execute(update(RunRow).where(RunRow.run_id == run_id).values(stack_id=""))

    async def _settle(self, run_id: str, state: str, message: str) -> None:
        this = update(RunRow).where(RunRow.run_id == run_id, RunRow.state != "deleted")
        await self._db.insist(lambda db: db.execute(this.values(state=state, message=message, deactivated_at=None)))


def describe(run: control_pb2.ProvisionedRun, stack: Stack | None, *, with_sampler: bool) -> None:
    """What has become of a run that was ready, by its stack."""
    if stack is None or stack.trainer is None:
        run.state, run.message = "failed", _NO_STACK
        return
    run.message = "; ".join(stack.troubles())
    match stack.condition:
        case "inactive":
            run.state, run.message = "inactive", _RESTS
            return
        case "failed":
            run.state = "failed"
            return
        case "starting":
            run.state = "provisioning"  # the addresses stay what they were
    run.trainer_url, run.model = stack.trainer.url, stack.spec.base_model
    if with_sampler:
        run.sampler_url = stack.sampler_url
