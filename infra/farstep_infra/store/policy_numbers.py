"""The numbers of a run's policies: each given once, whichever process asks, also after a crash.

A run's numbering has a name, its *history*. It lives as long as the store; where a run of the same id is
published from another store, its numbers begin anew under another history, and samplers can tell the two apart.

Invariant: within one history, a number that `reserve` has given never comes again.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from farstep_infra.store.durable import clear_disk_errors, replace_file
from farstep_infra.store.policies import FOLDER
from farstep_proto.errors import Internal
from farstep_proto.names import check_name, check_run_id

_FILE = "numbers.json"
_LOCK = "lock~"


@dataclass(frozen=True, slots=True)
class Numbered:
    """The last number given in a history; 0 before the first."""

    history: str
    version: int


class PolicyNumbers:
    """The numbers of all runs of one store; calls block."""

    def __init__(self, store: Path) -> None:
        self._root = store / FOLDER

    def reserve(self, run_id: str, *, above: int, begin: Callable[[], Numbered | None]) -> Numbered:
        """The next number: over `above` and over every one given before; it is on the disk before this returns.

        `begin` tells, for a run without numbers here, where else it has some, if anywhere.

        Raises:
            Internal: the disk is full or refuses, or what is on it is damaged; no number was given.
        """
        path = self._path(run_id)
        with clear_disk_errors(f"the policy numbers of {run_id}"), _locked(path.parent):
            last = _read(path) or begin() or Numbered(self.new_history(), 0)
            given = Numbered(last.history, max(last.version, above) + 1)
            replace_file(path, _encode(given))
        return given

    def give_back(self, run_id: str, given: Numbered) -> None:
        """Undoes a `reserve` whose policy nobody has seen, unless another number was given meanwhile."""
        path = self._path(run_id)
        with clear_disk_errors(f"the policy numbers of {run_id}"), _locked(path.parent):
            if _read(path) == given:
                replace_file(path, _encode(Numbered(given.history, given.version - 1)))

    @staticmethod
    def new_history() -> str:
        return secrets.token_hex(8)

    def _path(self, run_id: str) -> Path:
        return self._root / check_run_id(run_id) / _FILE


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _encode(numbered: Numbered) -> bytes:
    return json.dumps(asdict(numbered)).encode()


def _read(path: Path) -> Numbered | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
        return Numbered(check_name(content["history"]), int(content["version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Internal(f"{path} is damaged ({error})", hint="restore it, or publish under another run id") from error
