"""Runs: each is bound to the stack of its base model, which is started for it where there is none.

The database says what was asked for and how provisioning ended; whether the trainer still runs is asked of
the stack at every look. A run is never moved to another trainer: its adapter lives in that one.
"""

from __future__ import annotations

import logging
import secrets

from sqlalchemy import select, update

from farstep_infra.control import requests
from farstep_infra.control.db import Database, RunRow
from farstep_infra.control.fleet import Fleet, Stack
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.sessions import Sessions
from farstep_infra.control.trainers import Trainers
from farstep_infra.launchers.local import LaunchFailed
from farstep_proto.errors import Conflict, NotFound
from farstep_proto.v1 import control_pb2
from farstep_proto.validation import resolve_lora

log = logging.getLogger(__name__)

_AFTER_RESTART = (
    "its trainer ended with the control plane; its checkpoints are kept: go on from one of them "
    "with create_training_client_from_state_with_optimizer"
)
_DELETED = "its checkpoints are kept until they are deleted or expire"


class Runs:
    def __init__(
        self, db: Database, fleet: Fleet, sessions: Sessions, provisioning: Provisioning, trainers: Trainers
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._sessions = sessions
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

    async def create(self, session_id: str, request: control_pb2.ProvisionRunRequest) -> control_pb2.ProvisionedRun:
        """Begins to provision; the answer is in state "provisioning".

        Raises:
            InvalidInput: naming the field.
            NotFound: no open session of that id.
        """
        await self._sessions.get(session_id)
        requests.check_run(request)
        request.lora.CopyFrom(resolve_lora(request.lora))
        row = RunRow(
            run_id=f"run-{secrets.token_hex(8)}",
            session_id=session_id,
            state="provisioning",
            message="",
            base_model=request.base_model,
            request=request.SerializeToString(),
        )
        async with self._db.transaction() as db:
            db.add(row)
        self._provisioning.start(row.run_id, self._provision(row.run_id, request))
        return self._to_proto(row)

    async def get(self, run_id: str, *, wait_s: float) -> control_pb2.ProvisionedRun:
        """Waits up to `wait_s` seconds for a run that is being provisioned.

        Raises:
            NotFound: no such run.
        """
        await self._provisioning.wait(run_id, wait_s)
        return self._to_proto(await self._row(run_id))

    async def list(self) -> control_pb2.ListProvisionedRunsResponse:
        """All there ever were, oldest first."""
        async with self._db.transaction() as db:
            rows = (await db.execute(select(RunRow).order_by(RunRow.created_at, RunRow.run_id))).scalars().all()
        return control_pb2.ListProvisionedRunsResponse(runs=[self._to_proto(row) for row in rows])

    async def delete(self, run_id: str) -> None:
        """Ends a run on its trainer, where that is still there; it stays listed, as "deleted". Again does nothing.

        Raises:
            NotFound: no such run.
            Conflict: it is being provisioned.
            Internal: its trainer does not answer.
        """
        row = await self._row(run_id)
        if row.state == "provisioning":
            raise Conflict(f"run {run_id} is being provisioned", field="run_id", hint="delete it when it is ready")
        stack = self._stacks.get(run_id)
        if row.state == "ready" and stack is not None and stack.trainer.is_running:
            await self._trainers.delete_run(stack.trainer.url, run_id)
        await self._settle(run_id, "deleted", _DELETED)

    async def exists(self, run_id: str) -> bool:
        async with self._db.transaction() as db:
            return await db.get(RunRow, run_id) is not None

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
        async with self._db.transaction() as db:
            row = await db.get_one(RunRow, run_id)
            row.state, row.message = state, message

    async def _row(self, run_id: str) -> RunRow:
        async with self._db.transaction() as db:
            row = await db.get(RunRow, run_id)
        if row is None:
            raise NotFound(f"no run {run_id!r}", field="run_id")
        return row

    def _to_proto(self, row: RunRow) -> control_pb2.ProvisionedRun:
        request = control_pb2.ProvisionRunRequest.FromString(row.request)
        run = control_pb2.ProvisionedRun(
            run_id=row.run_id,
            session_id=row.session_id,
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
            _add_processes(run, self._stacks[row.run_id], with_sampler=request.with_sampler)
        return run


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
