"""Snapshots of runs: when one is due, its tensors cloned between two operations, and its files written elsewhere.

A snapshot is for a worker that is started anew: it makes the replay short and the journal small. Nobody can ask for it,
and no checkpoint is made of it.

Invariant: what a snapshot has is the run as it was after the operation of its seq. It is handed on when its files are
on the disk, and all that the run had published is in the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.errors import ApiError, InvalidInput
from farstep_proto.names import CheckpointPath
from farstep_worker.journal.records import SnapshotRow
from farstep_worker.operations import Work
from farstep_worker.publisher import Publisher
from farstep_worker.run_state import RunState
from farstep_worker.runs import Run
from farstep_worker.submission import LoadState, SaveState

log = logging.getLogger(__name__)

_PREFIX = "seq-"
_STATE_FILE = "state.json"
_TENSORS_FILE = "tensors.safetensors"
_RETRY_S = 1.0
_SHELF_S = 60.0


@dataclass(frozen=True, slots=True)
class SnapshotLimits:
    """What a replay of one run may take. A snapshot is not taken before it is worth `worth` times its cost."""

    seconds: float = 30.0
    operations: int = 5000
    num_bytes: int = 256 << 20
    worth: float = 100.0
    saved_seconds: float = 2.0  # at a `save_state`, which is a good moment


@dataclass(slots=True)
class _Since:
    """What a run has done since its last snapshot."""

    seconds: float = 0.0
    operations: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Captured:
    run_id: str
    state: RunState
    tensors: Mapping[str, Tensor]
    is_needed: bool  # somebody waits for it

    @property
    def name(self) -> str:
        return f"{_PREFIX}{self.state.seq}"


@dataclass(slots=True)
class _Course:
    """How a run's snapshots go; of the torch thread."""

    since: _Since = field(default_factory=_Since)
    cost_s: float = 0.0


class Snapshots:
    """Args: `deliver` is called, on a thread, with each snapshot whose files are there."""

    def __init__(
        self,
        store: CheckpointStore,
        publisher: Publisher,
        *,
        deliver: Callable[[SnapshotRow], None],
        limits: SnapshotLimits | None = None,
        is_crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._deliver = deliver
        self._limits = limits or SnapshotLimits()
        self._is_crowded = is_crowded
        self._courses: dict[str, _Course] = {}
        self._under_way: set[str] = set()
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")

    # On the torch thread

    def ran(self, runs: Mapping[str, Run], group: Sequence[Work], seconds: float) -> None:
        """Operations have run together; takes the snapshots that are due by that."""
        for work in group:
            run = runs.get(work.run_id)
            if run is None:
                continue
            course = self._courses.setdefault(work.run_id, _Course())
            course.since.seconds += seconds / len(group)
            course.since.operations += 1
            course.since.num_bytes += work.num_bytes
            is_needed = isinstance(work.call, LoadState)
            if is_needed or self._is_due(work, course):
                self.take(run, is_needed=is_needed)

    def take(self, run: Run, *, is_needed: bool = False) -> None:
        """Of a run in memory, if it has done anything since the last one."""
        course = self._courses.get(run.config.run_id)
        if course is None or not course.since.operations or run.away is not None or run.lost:
            return
        started = time.monotonic()
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in run.tensors().items()}
        course.cost_s = time.monotonic() - started
        self._begin(run, tensors, is_needed=is_needed)

    def left(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        """A run has left memory, with tensors that nobody changes any more."""
        course = self._courses.get(run.config.run_id)
        if course is not None and course.since.operations and not run.lost:
            self._begin(run, tensors, is_needed=False)

    def replayed(self, run_id: str, seconds: float, operations: int) -> None:
        """A run that was brought back has so much that it would take again."""
        self._courses[run_id] = _Course(_Since(seconds, operations))

    def forget(self, run_id: str) -> None:
        self._courses.pop(run_id, None)
        self._thread.submit(self._remove, run_id, lambda seq: True)

    def _is_due(self, work: Work, course: _Course) -> bool:
        since, limits = course.since, self._limits
        if work.run_id in self._under_way:
            return False
        if self._is_crowded():
            return True
        if since.seconds < limits.worth * course.cost_s:
            return False
        if isinstance(work.call, SaveState) and since.seconds >= limits.saved_seconds:
            return True
        is_slow = since.seconds >= limits.seconds
        return is_slow or since.operations >= limits.operations or since.num_bytes >= limits.num_bytes

    def _begin(self, run: Run, tensors: Mapping[str, Tensor], *, is_needed: bool) -> None:
        run_id = run.config.run_id
        self._courses[run_id].since = _Since()
        self._under_way.add(run_id)
        self._thread.submit(self._write, _Captured(run_id, RunState.of(run), tensors, is_needed))

    # On the thread that writes

    def _write(self, captured: _Captured) -> None:
        try:
            while not self._try_to_write(captured) and captured.is_needed and not self._closing.wait(_RETRY_S):
                pass
        except Exception:  # a mistake of ours or of a library's: the journal is longer for it
            log.exception("no snapshot of run %s", captured.run_id)
        finally:
            self._under_way.discard(captured.run_id)

    def _try_to_write(self, captured: _Captured) -> bool:
        run_id, state = captured.run_id, captured.state
        if not self._publisher.is_on_shelf(run_id, _SHELF_S) and not captured.is_needed:
            log.warning("no snapshot of run %s: what it published is not in the store yet", run_id)
            return False
        tensors = {name: tensor.cpu().contiguous() for name, tensor in captured.tensors.items()}
        files = {_STATE_FILE: state.to_json(), _TENSORS_FILE: save(tensors)}
        try:
            manifest = self._store.write(_path(run_id, captured.name), files, {}, overwrite=True)
        except (ApiError, OSError) as error:
            log.warning("no snapshot of run %s: %s", run_id, error)
            return False
        self._deliver(SnapshotRow(run_id, state.seq, captured.name, manifest.size_bytes))
        return True

    def _remove(self, run_id: str, is_over: Callable[[int], bool]) -> None:
        try:
            for manifest in self._store.list(run_id):
                if is_over(_seq_of(manifest.path.name)):
                    self._store.delete(manifest.path)
        except (ApiError, OSError) as error:
            log.warning("old snapshots of run %s cannot be removed: %s", run_id, error)

    # On any thread

    def remove(self, run_id: str, is_over: Callable[[int], bool]) -> None:
        """Has files of a run's snapshots removed, chosen by their seq, if not now then at the next start."""
        with suppress(RuntimeError):  # closed
            self._thread.submit(self._remove, run_id, is_over)

    def settle(self) -> None:
        """Returns when all that was begun is written or given up."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)


def read_snapshot(store: CheckpointStore, row: SnapshotRow) -> tuple[RunState, dict[str, Tensor]]:
    """Raises NotFound or InvalidInput where it is not what was written."""
    _, files = store.read(_path(row.run_id, row.name))
    try:
        # memory of torch's own, aligned as it is for every other tensor
        tensors = {name: tensor.clone() for name, tensor in load(files[_TENSORS_FILE]).items()}
    except (SafetensorError, KeyError) as error:
        raise InvalidInput(f"the snapshot {row.name} of run {row.run_id} is damaged: {error}") from error
    state = RunState.from_json(files.get(_STATE_FILE, b""))
    if state.seq != row.seq:
        raise InvalidInput(f"the snapshot {row.name} of run {row.run_id} is of another operation")
    return state, tensors


def _seq_of(name: str) -> int:
    return int(name.removeprefix(_PREFIX))


def _path(run_id: str, name: str) -> CheckpointPath:
    return CheckpointPath(run_id, "weights", name)
