"""The numbers of a run's policies: each given once, whichever process asks, also after a crash.

A run's numbering has a name, its *history*. It lives as long as the store; where a run of the same id is
published from another store, its numbers begin anew under another history, and samplers can tell the two apart.

Invariant: within one history, a number that `reserve` has given never comes again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import FOLDER
from farstep_proto.errors import Internal, NotFound
from farstep_proto.names import check_name, check_run_id

_FILE = "numbers.json"


@dataclass(frozen=True, slots=True)
class Numbered:
    """The last number given in a history; 0 before the first."""

    history: str
    version: int


class PolicyNumbers:
    """The numbers of all runs of one store; calls block."""

    def __init__(self, store: CheckpointStore) -> None:
        self._blobs = store.private(FOLDER)

    def reserve(self, run_id: str, *, above: int, begin: Callable[[], Numbered | None]) -> Numbered:
        """The next number: over `above` and over every one given before; it is in the store before this returns.

        `begin` tells, for a run without numbers here, where else it has some, if anywhere.

        Raises:
            Internal: the store is full or refuses, or what is in it is damaged; no number was given.
        """
        given: list[Numbered] = []

        def next_one(before: bytes | None) -> bytes:
            last = _decode(before, run_id) or begin() or Numbered(self.new_history(), 0)
            given.append(Numbered(last.history, max(last.version, above) + 1))
            return _encode(given[-1])

        self._blobs.change(_key(run_id), next_one)
        return given[-1]

    def give_back(self, run_id: str, given: Numbered) -> None:
        """Undoes a `reserve` whose policy nobody has seen, unless another number was given meanwhile."""

        def without(before: bytes | None) -> bytes:
            last = _decode(before, run_id) or given
            return _encode(Numbered(given.history, given.version - 1) if last == given else last)

        self._blobs.change(_key(run_id), without)

    def has(self, run_id: str) -> bool:
        """Whether a run was ever given a number here."""
        try:
            return bool(self._blobs.get(_key(run_id)))
        except NotFound:
            return False

    @staticmethod
    def new_history() -> str:
        return secrets.token_hex(8)


def _key(run_id: str) -> str:
    return f"{check_run_id(run_id)}/{_FILE}"


def _encode(numbered: Numbered) -> bytes:
    return json.dumps(asdict(numbered)).encode()


def _decode(data: bytes | None, run_id: str) -> Numbered | None:
    if data is None:
        return None
    try:
        content = json.loads(data)
        return Numbered(check_name(content["history"]), int(content["version"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Internal(
            f"the policy numbers of {run_id} are damaged ({error})",
            hint="restore them, or publish under another run id",
        ) from error
