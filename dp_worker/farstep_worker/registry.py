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
from dataclasses import fields

from farstep_proto.errors import Conflict, NotFound
from farstep_proto.v1 import training_pb2 as pb
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
        self._deleted: set[str] = set()

    @property
    def runs(self) -> list[Run]:
        return [run for run in list(self._executor.runs.values()) if run.config.run_id not in self._deleted]

    def find(self, run_id: str) -> Run:
        """Raises NotFound for a run that is not here, or no longer."""
        run = self._executor.runs.get(run_id)
        if run_id in self._deleted or run is None:
            gone = "was deleted" if run_id in self._deleted else "is not on this trainer"
            raise NotFound(f"run {run_id!r} {gone}", field="run_id")
        return run

    async def create(self, request: pb.CreateRunRequest, *, keep: Keep | None = None) -> Run:
        """A run by its id, made if it is not there yet.

        Args:
            keep: writes a new run down, with the request that would make the same one, before anybody hears of it;
                where it raises, there is no run.

        Raises:
            InvalidInput: naming the field.
            Conflict: it is there with another configuration, it was deleted, or there are as many as there may be.
        """
        base = self._executor.base
        async with self._creating:
            known = self._executor.runs.get(request.run_id)
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

    def restore_deleted(self, run_id: str) -> None:
        """An earlier process has deleted it."""
        self._deleted.add(run_id)

    def hide(self, run_id: str) -> bool:
        """Begins to delete a run: nobody finds it any more. False where that was done before.

        Raises:
            NotFound: there was never such a run.
        """
        if run_id in self._deleted:
            return False
        self._deleted.add(self.find(run_id).config.run_id)
        return True

    def is_deleted(self, run_id: str) -> bool:
        return run_id in self._deleted

    def close(self) -> None:
        self._thread.shutdown(wait=False)

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


def _check_same(known: RunConfig, asked: RunConfig) -> None:
    for field in fields(known):
        here, there = getattr(known, field.name), getattr(asked, field.name)
        if here != there:
            raise Conflict(
                f"run {known.run_id} is there with {field.name} {here}, not {there}",
                field=field.name,
                hint="choose another run_id",
            )
