"""Runs: each is bound to the stack of its base model, which is started for it where there is none.

The database says what was asked for and how provisioning ended; whether the trainer still runs is asked of
the stack at every look. A run is never moved to another trainer: its adapter lives in that one.
"""

from __future__ import annotations

import logging
import secrets
import time

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control import quotas, requests
from farstep_infra.control.db import Database
from farstep_infra.control.fleet import Fleet, Stack
from farstep_infra.control.idempotency import Once
from farstep_infra.control.pages import PageRequest, read_page
from farstep_infra.control.projects import hold
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.scope import find, visible
from farstep_infra.control.sessions import find_open
from farstep_infra.control.tables import RunRow
from farstep_infra.control.trainers import Trainers
from farstep_infra.launchers.local import LaunchFailed
from farstep_proto.errors import Conflict, NotFound
from farstep_proto.v1 import control_pb2
from farstep_proto.validation import resolve_lora
from farstep_serving.keys import Caller

log = logging.getLogger(__name__)

_AFTER_RESTART = (
    "its trainer ended with the control plane; its checkpoints are kept: go on from one of them "
    "with create_training_client_from_state_with_optimizer"
)
STATES = ("provisioning", "ready", "inactive", "failed", "deleted")
_DELETED = "its checkpoints are kept until they are deleted or expire"


class Runs:
    def __init__(self, db: Database, fleet: Fleet, provisioning: Provisioning, trainers: Trainers) -> None:
        self._db = db
        self._fleet = fleet
        self._provisioning = provisioning
        self._trainers = trainers
        self._stacks: dict[str, Stack] = {}

    async def mark_lost(self) -> None:
        """At the start of a control plane: what an earlier one had running has ended with it."""
        lost = (
            update(RunRow)
            .where(RunRow.state.not_in(("failed", "deleted")))
            .values(state="failed", message=_AFTER_RESTART)
        )
        async with self._db.transaction() as db:
            await db.execute(lost)

    async def create(
        self, session_id: str, request: control_pb2.ProvisionRunRequest, *, caller: Caller, once: Once
    ) -> control_pb2.ProvisionedRun:
        """Begins to provision; the answer is in state "provisioning".

        Raises:
            InvalidInput: naming the field.
            NotFound: no open session of that id that the caller may see.
            QuotaExceeded: the project has as many as it may have.
        """
        requests.check_run(request)
        request.lora.CopyFrom(resolve_lora(request.lora))
        row = RunRow(
            run_id=f"run-{secrets.token_hex(8)}",
            session_id=session_id,
            state="provisioning",
            message="",
            base_model=request.base_model,
            request=request.SerializeToString(),
            created_at=time.time(),
        )
        async with self._db.transaction() as db:
            if earlier := await once.answered(db, control_pb2.ProvisionedRun):
                return earlier
            session = await find_open(db, session_id, caller, lock=True)
            project = await hold(db, session.project)
            await quotas.refuse_another(db, project, "max_runs")
            quotas.refuse_replicas(project, "max_trainer_replicas", max(1, request.replicas))
            quotas.refuse_replicas(project, "max_sampler_replicas", request.sampler_replicas)
            row.project, session.last_seen_at = session.project, row.created_at
            db.add(row)
            answer = self._to_proto(row)
            await once.keep(db, answer)
        self._provisioning.start(row.run_id, self._provision(row.run_id, request))
        return answer

    async def get(self, run_id: str, *, caller: Caller, wait_s: float = 0.0) -> control_pb2.ProvisionedRun:
        """Waits up to `wait_s` seconds for a run that is being provisioned.

        Raises:
            NotFound: no such run that the caller may see.
        """
        row = await self._row(run_id, caller)
        if row.state == "provisioning" and wait_s > 0:
            await self._provisioning.wait(run_id, wait_s)
            row = await self._row(run_id, caller)
        return self._to_proto(row)

    async def list(
        self, page: PageRequest, *, caller: Caller, project: str = "", state: str = "", session_id: str = ""
    ) -> control_pb2.ListProvisionedRunsResponse:
        """Those that the caller may see, oldest first."""
        query = visible(select(RunRow), caller, RunRow.project)
        for column, wanted in ((RunRow.project, project), (RunRow.state, state), (RunRow.session_id, session_id)):
            if wanted:
                query = query.where(column == wanted)
        order = (RunRow.created_at, RunRow.run_id)
        async with self._db.reading() as db:
            rows, following = await read_page(db, query, order, page)
        return control_pb2.ListProvisionedRunsResponse(runs=[self._to_proto(row) for row in rows], next_page=following)

    async def count(self) -> int:
        """All there ever were."""
        async with self._db.reading() as db:
            return (await db.execute(select(func.count()).select_from(RunRow))).scalar_one()

    async def delete(self, run_id: str, *, caller: Caller) -> None:
        """Ends a run on its trainer, where that is still there; it stays listed, as "deleted". Again does nothing.

        Raises:
            NotFound: no such run that the caller may see.
            Conflict: it is being provisioned.
            Internal: its trainer does not answer.
        """
        row = await self._row(run_id, caller)
        if row.state == "provisioning":
            raise Conflict(f"run {run_id} is being provisioned", field="run_id", hint="delete it when it is ready")
        stack = self._stacks.get(run_id)
        if row.state == "ready" and stack is not None and stack.trainer.is_running:
            await self._trainers.delete_run(stack.trainer.url, run_id)
        async with self._db.transaction() as db:
            await _settle(db, run_id, "deleted", _DELETED)

    async def exists(self, run_id: str, *, caller: Caller) -> bool:
        """Whether there is such a run that the caller may see."""
        async with self._db.reading() as db:
            return await find(db, RunRow, run_id, caller) is not None

    async def _provision(self, run_id: str, request: control_pb2.ProvisionRunRequest) -> None:
        try:
            self._stacks[run_id] = await self._fleet.stack(
                request.base_model, with_sampler=request.with_sampler, replicas=max(1, request.sampler_replicas)
            )
        except LaunchFailed as error:
            await self._settle(run_id, "failed", str(error))
        except Exception as error:
            log.exception("provisioning %s", run_id)
            await self._settle(
                run_id, "failed", f"the control plane made a mistake ({error!r}); its log has the details"
            )
        else:
            await self._settle(run_id, "ready", "")

    async def _settle(self, run_id: str, state: str, message: str) -> None:
        await self._db.insist(lambda db: _settle(db, run_id, state, message))

    async def _row(self, run_id: str, caller: Caller) -> RunRow:
        async with self._db.reading() as db:
            row = await find(db, RunRow, run_id, caller)
        if row is None:
            raise NotFound(f"no run {run_id!r}", field="run_id")
        return row

    def _to_proto(self, row: RunRow) -> control_pb2.ProvisionedRun:
        request = control_pb2.ProvisionRunRequest.FromString(row.request)
        run = control_pb2.ProvisionedRun(
            run_id=row.run_id,
            session_id=row.session_id,
            project=row.project,
            state=row.state,
            message=row.message,
            base_model=row.base_model,
            lora=request.lora,
            max_seq_len=request.max_seq_len,
            name=request.name,
            user_metadata=request.user_metadata,
            created_at=row.created_at,
        )
        if request.HasField("seed"):
            run.seed = request.seed
        if row.state == "ready" and row.run_id in self._stacks:
            _add_processes(run, self._stacks[row.run_id], with_sampler=request.with_sampler)
        return run


async def _settle(db: AsyncSession, run_id: str, state: str, message: str) -> None:
    await db.execute(update(RunRow).where(RunRow.run_id == run_id).values(state=state, message=message))


def _add_processes(run: control_pb2.ProvisionedRun, stack: Stack, *, with_sampler: bool) -> None:
    if not stack.trainer.is_running:
        run.state = "failed"
        run.message = f"its trainer is gone: {stack.trainer.process.epitaph()}"
        return
    run.trainer_url = stack.trainer.url
    if not with_sampler or stack.samplers is None:
        return
    ended = [server.process for server in stack.samplers.servers if not server.is_running]
    if ended:
        run.message = f"part of its sampler is gone: {ended[0].epitaph()}"
    run.sampler_url = stack.samplers.url
