"""Runs: each is bound to a stack, for good: its adapter lives in that trainer, and in its journal.

The database says what was asked for and how provisioning ended; whether the trainer runs just now is asked of the stack
at every look.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control import quotas, requests
from farstep_infra.control.db import Database
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.idempotency import Once
from farstep_infra.control.machine import Machine
from farstep_infra.control.pages import PageRequest, read_page
from farstep_infra.control.projects import hold
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.run_stacks import RunStacks, describe
from farstep_infra.control.scope import find, visible
from farstep_infra.control.sessions import find_open
from farstep_infra.control.tables import RunRow, SessionRow
from farstep_proto.errors import Conflict, NotFound, Unavailable
from farstep_proto.names import check_run_id
from farstep_proto.v1 import control_pb2
from farstep_proto.validation import resolve_lora
from farstep_serving.keys import Caller

_BEFORE_STACKS = (
    "its trainer was that of an older version of the control plane, and ended with it; its checkpoints are kept: "
    "go on from one of them with create_training_client_from_state_with_optimizer"
)
STATES = ("provisioning", "ready", "inactive", "failed", "deleted")
_DELETED = "its checkpoints are kept until they are deleted or expire"


class Runs:
    def __init__(self, db: Database, fleet: Fleet, stacks: RunStacks, provisioning: Provisioning) -> None:
        self._db = db
        self._fleet = fleet
        self._stacks = stacks
        self._provisioning = provisioning
        self._machine = Machine.here()

    async def restore(self) -> None:
        """At the start of a control plane: what an earlier one began is gone on with."""
        lost = update(RunRow).where(RunRow.stack_id.is_(None), RunRow.state.not_in(("failed", "deleted")))
        async with self._db.transaction() as db:
            await db.execute(lost.values(state="failed", message=_BEFORE_STACKS))
            begun = (await db.execute(select(RunRow).where(RunRow.state == "provisioning"))).scalars().all()
        for row in begun:
            self._provisioning.start(row.run_id, self._stacks.provision(row))

    async def create(
        self,
        session_id: str,
        request: control_pb2.ProvisionRunRequest,
        *,
        caller: Caller,
        once: Once,
        run_id: str = "",
        beside: Callable[[AsyncSession], Awaitable[None]] | None = None,
    ) -> control_pb2.ProvisionedRun:
        """Begins to provision; the answer is in state "provisioning".

        Args:
            run_id: the id to give, which nobody has yet; empty: one of ours.
            beside: what is written in the same transaction, after the run's row.

        Raises:
            InvalidInput: naming the field.
            Conflict: there is a run of that id.
            NotFound: no open session of that id that the caller may see.
            QuotaExceeded: the project has as many as it may have.
            TooManyRequests: so many base models are loaded, and all of them are in use.
        """
        self._fleet.served.check(request.base_model)
        requests.check_run(request)
        self._machine.check_trainer_replicas(request.replicas, device=self._fleet.device)
        await self._stacks.check_room(request)
        request.lora.CopyFrom(resolve_lora(request.lora))
        row = RunRow(
            run_id=check_run_id(run_id) if run_id else f"run-{secrets.token_hex(8)}",
            session_id=session_id,
            state="provisioning",
            message="",
            base_model=request.base_model,
            request=request.SerializeToString(),
            created_at=time.time(),
        )
        try:
            async with self._db.transaction() as db:
                if earlier := await once.answered(db, control_pb2.ProvisionedRun):
                    return earlier
                session = await find_open(db, session_id, caller, lock=True)
                project = await hold(db, session.project)
                await quotas.refuse_another(db, project, "max_runs")
                quotas.refuse_replicas(project, "max_trainer_replicas", max(1, request.replicas))
                quotas.refuse_replicas(project, "max_sampler_replicas", request.sampler_replicas)
                row.project, session.last_seen_at = session.project, row.created_at
                if run_id and await db.get(RunRow, run_id) is not None:
                    raise Conflict(f"run {run_id} is there already", field="run_id")
                db.add(row)
                if beside is not None:
                    await db.flush()
                    await beside(db)
                answer = self._to_proto(row)
                await once.keep(db, answer)
        except Unavailable:  # whether it was entered nobody knows before the database is back
            self._provisioning.start(row.run_id, self._provision_if_entered(row))
            raise
        self._provisioning.start(row.run_id, self._stacks.provision(row))
        return answer

    async def get(self, run_id: str, *, caller: Caller, wait_s: float = 0.0) -> control_pb2.ProvisionedRun:
        """Who waits, up to `wait_s` seconds, has a use for the run: it is woken where it rests.

        Raises:
            NotFound: no such run that the caller may see.
            TooManyRequests: it rests, so many base models are loaded, and all of them are in use.
        """
        row = await self._row(run_id, caller)
        if wait_s > 0:
            await self._stacks.want(row)
            await self._provisioning.wait(run_id, wait_s)
            row = await self._row(run_id, caller)
        return self._to_proto(row)

    async def deactivate(self, run_id: str, *, caller: Caller) -> control_pb2.ProvisionedRun:
        """Has a run rest until somebody waits for it; its stack as well, unless others use that or it has work to do.

        Raises:
            NotFound: no such run that the caller may see.
            Conflict: it is being provisioned, or failed, or is deleted.
        """
        row = await self._row(run_id, caller)
        if row.state not in ("ready", "inactive"):
            raise Conflict(f"run {run_id} is {row.state}", field="run_id", hint="only a ready run can be deactivated")
        await self._stacks.deactivate(row)
        return self._to_proto(await self._row(run_id, caller))

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

    async def window(
        self, *, limit: int, offset: int, caller: Caller, project: str = ""
    ) -> tuple[Sequence[tuple[control_pb2.ProvisionedRun, float]], int]:
        """`limit` of those that the caller may see, newest first, from the `offset`-th on, and how many there are.

        With each, when a client of its session last gave a sign of life.
        """
        found: Any = select(RunRow, SessionRow.last_seen_at).join(SessionRow)
        query = visible(found, caller, RunRow.project)
        count = visible(select(func.count()).select_from(RunRow), caller, RunRow.project)
        if project:
            query, count = query.where(RunRow.project == project), count.where(RunRow.project == project)
        newest = query.order_by(RunRow.created_at.desc(), RunRow.run_id.desc()).limit(limit).offset(offset)
        async with self._db.reading() as db:
            rows = (await db.execute(newest)).all()
            total = (await db.execute(count)).scalar_one()
        return [(self._to_proto(row), seen_at) for row, seen_at in rows], total

    async def ids(self, *, caller: Caller) -> set[str]:
        """Of all that the caller may see."""
        async with self._db.reading() as db:
            return set((await db.execute(visible(select(RunRow.run_id), caller, RunRow.project))).scalars())

    async def count(self) -> int:
        """All there ever were."""
        async with self._db.reading() as db:
            return (await db.execute(select(func.count()).select_from(RunRow))).scalar_one()

    async def delete(self, run_id: str, *, caller: Caller) -> None:
        """Ends a run; it stays listed, as "deleted". Again does nothing.

        A trainer that rests or is being started again hears of it as soon as it is back.

        Raises:
            NotFound: no such run that the caller may see.
            Conflict: it is being provisioned.
            Internal: its trainer does not answer.
        """
        row = await self._row(run_id, caller)
        if row.state == "provisioning":
            raise Conflict(f"run {run_id} is being provisioned", field="run_id", hint="delete it when it is ready")
        if row.state == "deleted":
            return
        await self._stacks.delete_on_trainer(row)
        async with self._db.transaction() as db:
            this = update(RunRow).where(RunRow.run_id == run_id)
            await db.execute(this.values(state="deleted", message=_DELETED, stack_id=row.stack_id))
        self._provisioning.start(f"release-{run_id}", self._stacks.release(row))

    async def model_name(self, run_id: str, model: str) -> str:
        """What programs are told that the model of a run's checkpoints is called: as it was for the run, if known."""
        async with self._db.reading() as db:
            asked = await db.scalar(select(RunRow.base_model).where(RunRow.run_id == run_id))
        return self._fleet.served.name_for(model, asked=asked or "")

    async def exists(self, run_id: str, *, caller: Caller) -> bool:
        """Whether there is such a run that the caller may see."""
        async with self._db.reading() as db:
            return await find(db, RunRow, run_id, caller) is not None

    async def _provision_if_entered(self, row: RunRow) -> None:
        if await self._db.insist(lambda db: db.get(RunRow, row.run_id)) is not None:
            await self._stacks.provision(row)

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
        if row.state == "ready":
            describe(run, self._fleet.find(row.stack_id or ""), with_sampler=request.with_sampler)
        return run
