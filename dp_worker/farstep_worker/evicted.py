"""Tensors of runs that had to leave memory, as files for this process alone.

They lie under `evicted~/` on a local disk (in the store's directory, where no checkpoint can be, or in the user's cache
where the store is a bucket), one directory for each living process; what a dead one left is removed when the next
begins. Nothing of them survives a process: that is for checkpoints.

Invariant: tensors that were put are there until they are forgotten, in memory as long as the disk does not have them.
What comes back is what was put, bit for bit, or an error.
"""

from __future__ import annotations

import fcntl
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.errors import ApiError, ModelError
from farstep_proto.names import CheckpointPath

log = logging.getLogger(__name__)

FOLDER = "evicted~"
_FILE = "tensors.safetensors"
_LOCK = "lock~"
_RETRY_S = 60.0


class EvictedRuns:
    """Puts return at once: a thread of its own writes. `close` removes everything.

    Args:
        root: a local directory; nothing is written before the first run leaves.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER
        self._name = f"{secrets.token_hex(8)}~"
        self._store: CheckpointStore | None = None
        self._own_lock: BufferedWriter | None = None
        self._unwritten: dict[str, Mapping[str, Tensor]] = {}
        self._num_puts = 0
        self._put_numbers: dict[str, int] = {}
        self._lock = threading.Lock()
        self._retry_at = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evict")

    @property
    def takes_more(self) -> bool:
        """False for a while after the disk has refused: what is put could not leave memory."""
        return time.monotonic() >= self._retry_at

    def put(self, run_id: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors, which nobody changes any more; they leave memory when they are on the disk."""
        with self._lock:
            self._unwritten[run_id] = tensors
            self._num_puts += 1
            self._put_numbers[run_id] = self._num_puts
        self._thread.submit(self._write_all)

    def take(self, run_id: str) -> Mapping[str, Tensor]:
        """What was put, on the CPU or where it was; it is kept until `forget`.

        Raises:
            ModelError: the disk does not give it back as it was.
        """
        with self._lock:
            tensors = self._unwritten.get(run_id)
        if tensors is not None:
            return tensors
        assert self._store is not None
        try:
            _, files = self._store.read(_path(run_id))
            # memory of torch's own, aligned as it is for every other tensor
            loaded = {name: tensor.clone() for name, tensor in load(files[_FILE]).items()}
        except (ApiError, OSError, SafetensorError) as error:
            raise ModelError(
                f"run {run_id} left memory while it was idle, and what was kept of it on disk is damaged: {error}",
                error_class="EvictedRunError",
                hint="delete the run, and go on from its last checkpoint",
            ) from error
        return loaded

    def forget(self, run_id: str) -> None:
        """Removes what was put, if there is any."""
        with self._lock:
            self._unwritten.pop(run_id, None)
            number = self._put_numbers.pop(run_id, 0)
        self._thread.submit(self._remove, run_id, number)

    def settle(self) -> None:
        """Returns when all is written that can be."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Gives up whatever is still kept."""
        with self._lock:
            self._unwritten.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._own_lock is not None:
            with _locked(self._folder):
                shutil.rmtree(self._folder / self._name, ignore_errors=True)
                Path(self._own_lock.name).unlink(missing_ok=True)
            self._own_lock.close()

    def _write_all(self) -> None:
        """Also what the disk did not take before."""
        with self._lock:
            unwritten = list(self._unwritten.items())
        for run_id, tensors in unwritten:
            try:
                store = self._open()
                data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
                store.write(_path(run_id), {_FILE: data}, {}, overwrite=True)
            except (ApiError, OSError) as error:
                self._retry_at = time.monotonic() + _RETRY_S
                log.warning("run %s cannot leave memory and stays there: %s", run_id, error)
                return
            with self._lock:
                if self._unwritten.get(run_id) is tensors:
                    del self._unwritten[run_id]

    def _remove(self, run_id: str, number: int) -> None:
        """What was put under that number; it may have been put again since, and be written already."""
        with self._lock:
            is_put_again = self._put_numbers.get(run_id, number) != number
        if self._store is None or is_put_again:
            return
        try:
            shutil.rmtree(self._folder / self._name / run_id)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("what was kept of run %s while it was out of memory cannot be removed: %s", run_id, error)

    def _open(self) -> CheckpointStore:
        """The private store, made at the first use: beside those of other living processes, in place of dead ones'."""
        if self._store is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(self._folder):
                self._own_lock = _lock_of(self._folder, self._name).open("wb")
                fcntl.flock(self._own_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (self._folder / self._name).mkdir()
            self._store = CheckpointStore(self._folder / self._name)
        return self._store


def remove_stale(root: Path) -> int:
    """Removes what processes that are gone have left under a store's directory; how many there were."""
    folder = root / FOLDER
    if not folder.is_dir():
        return 0
    num_removed = 0
    with _locked(folder):
        for stale in [path for path in folder.iterdir() if path.is_dir()]:
            with _lock_of(folder, stale.name).open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its process lives
                shutil.rmtree(stale, ignore_errors=True)
                Path(lock.name).unlink()
                num_removed += 1
    return num_removed


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes and removes directories here."""
    with (folder / _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.{_LOCK}"


def _path(run_id: str) -> CheckpointPath:
    return CheckpointPath(run_id, "weights", "evicted")
