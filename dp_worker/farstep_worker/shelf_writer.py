"""Published policies on their way to a shelf, on a thread of its own that is there only while it has work.

A disk that is slower than the trainer may hold the trainer up, so that every version is kept; a place far away may
not: there, a policy that waits gives way to a newer one of its run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_proto.errors import ApiError

log = logging.getLogger(__name__)

_MOST_WAITING = 4


class ShelfWriter:
    """Args:
    name: of the place, for the log.
    skips: whether a newer policy takes the place of one that waits, and nobody ever waits for this.
    retries_s: the pauses before further attempts at a policy that could not be written.
    """

    def __init__(self, shelves: PolicyShelves, *, name: str, skips: bool, retries_s: Sequence[float] = ()) -> None:
        self._shelves = shelves
        self._name = name
        self._skips = skips
        self._retries_s = retries_s
        self._waiting: dict[tuple[str, int], ShelvedPolicy] = {}  # in order; the one being written is still in it
        self._changed = threading.Condition()
        self._is_writing = False
        self._failed: set[str] = set()  # runs whose last policy could not be written

    def put(self, policy: ShelvedPolicy) -> None:
        """Has a policy written soon."""
        with self._changed:
            if self._skips:
                for key in [key for key in self._waiting if key[0] == policy.run_id]:
                    del self._waiting[key]
            else:
                self._changed.wait_for(lambda: len(self._waiting) < _MOST_WAITING)
            self._waiting[policy.run_id, policy.version] = policy
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write_all, name=f"policies-{self._name}").start()

    def waiting(self, run_id: str, version: int) -> ShelvedPolicy | None:
        """A policy that is not written yet."""
        with self._changed:
            return self._waiting.get((run_id, version))

    def settle(self, run_id: str, timeout_s: float) -> bool:
        """Waits until nothing of a run waits; whether the last that was put is there."""
        with self._changed:
            is_over = self._changed.wait_for(lambda: not any(key[0] == run_id for key in self._waiting), timeout_s)
            return is_over and run_id not in self._failed

    def flush(self, timeout_s: float | None = None) -> bool:
        """Waits until everything is written or given up; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_writing, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                policy = next(iter(self._waiting.values()))
            is_written = self._write(policy)
            with self._changed:
                (self._failed.discard if is_written else self._failed.add)(policy.run_id)
                if self._waiting.get((policy.run_id, policy.version)) is policy:
                    del self._waiting[policy.run_id, policy.version]
                self._changed.notify_all()

    def _write(self, policy: ShelvedPolicy) -> bool:
        what = f"version {policy.version} of {policy.run_id}"
        for pause_s in (*self._retries_s, None):
            try:
                self._shelves.put(policy)
            except ApiError as error:
                log.warning("%s is not kept %s: %s", what, self._name, error.message)
                if pause_s is None or self._is_outdated(policy):
                    return False
                time.sleep(pause_s)
            except Exception:  # a mistake of ours or of a library's: the next policy may do better
                log.exception("%s is not kept %s", what, self._name)
                return False
            else:
                return True
        raise AssertionError("unreachable")

    def _is_outdated(self, policy: ShelvedPolicy) -> bool:
        with self._changed:
            return any(run_id == policy.run_id and version > policy.version for run_id, version in self._waiting)
