"""Which runs there are on this trainer: created, found, deleted.

It lives on the event loop and knows neither HTTP nor the queue. What takes time is done on other threads than the one
that computes, so that nobody who creates a run waits behind another run's operation.

Invariant: as long as the process lives, a run id means one run. An id that was deleted is not given again, because
outcomes, policy versions and checkpoints are remembered under it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

from farstep_infra.store.run_owners import RunOwners, taken
from farstep_proto.errors import Conflict, InvalidInput, NotFound
from farstep_proto.v1 import training_pb2 as pb
from farstep_serving.keys import OPERATOR, Caller
from farstep_worker.executor import Executor
from farstep_worker.runs import Run, RunConfig, read_config

DEFAULT_MAX_RUNS = 1000

Keep = Callable[[Run, pb.CreateRunRequest], Awaitable[None]]


class RunRegistry:
    """Args: `max_runs` is how many there may be at once."""

    def __init__(self, executor: Executor, *, max_runs: int = DEFAULT_MAX_RUNS) -> None:
        self._executor = executor
        self._max_runs = max_runs
        self._creating = asyncio.Lock()
        # not asyncio's own threads: torch keeps a pool of its own for each that calls it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runs")
        self._owners = RunOwners(executor.store)
        self._deleted: dict[str, str] = {}  # run_id -> whose it was

    @property
    def runs(self) -> list[Run]:
        return [run for run in list(self._executor.runs.values()) if run.config.run_id not in self._deleted]

    def find(self, run_id: str) -> Run:
        """Raises NotFound for a run that is not here, or no longer."""
        run = self._executor.runs.get(run_id)
        if run_id in self._deleted or run is None:
            raise _not_here(run_id, was_deleted=run_id in self._deleted)
        return run

    def project_of(self, run_id: str) -> str | None:
        """Whose a run is or, when it was deleted, was; None where there was never such a run."""
        run = self._executor.runs.get(run_id)
        return self._deleted.get(run_id) if run is None else run.config.project

    def may_see(self, caller: Caller, run_id: str) -> bool:
        """Whether a run is there, or was, as far as the caller may know."""
        project = self.project_of(run_id)
        return project is not None and caller.may_see(project)

    def check_seen(self, caller: Caller, run_id: str) -> None:
        """Raises NotFound for a run that is not here and for one that is another's, alike."""
        if not self.may_see(caller, run_id):
            raise _not_here(run_id)

    async def create(self, request: pb.CreateRunRequest, caller: Caller = OPERATOR, *, keep: Keep | None = None) -> Run:
        """A run by its id, made if it is not there yet; a project's key makes its own project's.

        Args:
            keep: writes a new run down, with the request that would make the same one, before anybody hears of it;
                where it raises, there is no run.

        Raises:
            InvalidInput: naming the field.
            Conflict: it is there with another configuration, it was deleted, or there are as many as there may be;
                or the id is another project's, of which no more is said.
        """
        base = self._executor.base
        async with self._creating:
            known = self._executor.runs.get(request.run_id)
            request.project = self._project_for(request, caller)
            config = read_config(
                request,
                base_model=base.name,
                max_seq_len=base.max_seq_len,
                default_run_id=f"run-{secrets.token_hex(6)}",
                default_seed=secrets.randbits(31) if known is None else known.config.seed,
            )
            self._check_not_deleted(config.run_id)
            if known is not None:
                _check_same(known.config, config)
                return known
            self._check_room()
            claimed = await asyncio.to_thread(self._owners.claim, config.run_id, config.project, caller)
            request.project, config = claimed, replace(config, project=claimed)
            run = await asyncio.get_running_loop().run_in_executor(self._thread, self._executor.create_run, config)
            if keep is not None:
                await self._keep(run, request, keep)
            return run

    async def _keep(self, run: Run, request: pb.CreateRunRequest, keep: Keep) -> None:
        config = run.config
        resolved = pb.CreateRunRequest()
        resolved.CopyFrom(request)
        resolved.run_id, resolved.seed, resolved.max_seq_len = config.run_id, config.seed, config.max_seq_len
        run.incarnation = secrets.token_hex(8)
        try:
            await keep(run, resolved)
        except BaseException:
            self._executor.delete_run(config.run_id)  # nothing of it was asked for yet
            raise

    def restore_deleted(self, run_id: str, project: str) -> None:
        """An earlier process has deleted it."""
        self._deleted[run_id] = project

    def hide(self, run_id: str) -> bool:
        """Begins to delete a run: nobody finds it any more. False where that was done before.

        Raises:
            NotFound: there was never such a run.
        """
        if run_id in self._deleted:
            return False
        self._deleted[run_id] = self.find(run_id).config.project
        return True

    def is_deleted(self, run_id: str) -> bool:
        return run_id in self._deleted

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _project_for(self, request: pb.CreateRunRequest, caller: Caller) -> str:
        """Whose the run is to be; where nobody says it, an operator gets the run as it is."""
        if not caller.is_operator and request.project not in ("", caller.project):
            raise InvalidInput(f"this key is not of project {request.project!r}", field="project")
        there = self.project_of(request.run_id)
        if there is not None and not caller.may_see(there):
            raise taken(request.run_id)
        return request.project or caller.project or there or ""

    def _check_not_deleted(self, run_id: str) -> None:
        if run_id in self._deleted:
            raise Conflict(f"run {run_id} was deleted", field="run_id", hint="choose another run_id")

    def _check_room(self) -> None:
        if len(self.runs) >= self._max_runs:
            raise Conflict(
                f"this trainer holds {self._max_runs} runs, as many as it takes",
                field="run_id",
                hint="delete one that is no longer needed (delete_run), or start the trainer with a larger --max-runs",
            )


def _not_here(run_id: str, *, was_deleted: bool = False) -> NotFound:
    return NotFound(f"run {run_id!r} {'was deleted' if was_deleted else 'is not on this trainer'}", field="run_id")


def _check_same(known: RunConfig, asked: RunConfig) -> None:
    for field in fields(known):
        here, there = getattr(known, field.name), getattr(asked, field.name)
        if here != there:
            raise Conflict(
                f"run {known.run_id} is there with {field.name} {here}, not {there}",
                field=field.name,
                hint="choose another run_id",
            )
