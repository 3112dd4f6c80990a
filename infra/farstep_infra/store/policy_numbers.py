"""The numbers of a run's policies: each given once, whichever process asks, also after a crash.

A run's numbering has a name, its *history*. It lives as long as the store; where a run of the same id is
published from another store, its numbers begin anew under another history, and samplers can tell the two apart.

Whoever may have to repeat an operation names it, and gets the number that the operation got the first time.

Invariant: within one history, a number that `reserve` has given never comes again, but to the same operation.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class _Given:
    """What is on the disk: the last number, and the numbers of operations that may yet be repeated."""

    last: Numbered
    operations: Mapping[str, int] = field(default_factory=dict)


class PolicyNumbers:
    """The numbers of all runs of one store; calls block."""

    def __init__(self, store: CheckpointStore) -> None:
        self._blobs = store.private(FOLDER)

    def reserve(
        self,
        run_id: str,
        *,
        above: int,
        begin: Callable[[], Numbered | None],
        operation: str = "",
        is_over: Callable[[str], bool] = lambda operation: True,
        is_void: Callable[[str], bool] = lambda operation: False,
    ) -> Numbered:
        """The next number: over `above` and over every one given before; it is in the store before this returns.

        Args:
            begin: tells, for a run without numbers here, where else it has some, if anywhere.
            operation: what the number is for, where that may be repeated.
            is_over: whether an operation that was named earlier cannot be repeated any more.
            is_void: whether one whose number is over `above` has ended, and so without a policy: nobody saw the number,
                which could not be given back (on a full disk, say).

        Raises:
            Internal: the store is full or refuses, or what is in it is damaged; no number was given.
        """
        given: list[Numbered] = []

        def next_one(before: bytes | None) -> bytes:
            known = _decode(before, run_id) or _Given(begin() or Numbered(self.new_history(), 0))
            if operation in known.operations:
                given.append(Numbered(known.last.history, known.operations[operation]))
                return _encode(known)
            void = {version for name, version in known.operations.items() if version > above and is_void(name)}
            last = known.last.version
            while last in void:
                last -= 1
            given.append(Numbered(known.last.history, max(last, above) + 1))
            named = {name: version for name, version in known.operations.items() if not is_over(name)}
            if operation:
                named[operation] = given[-1].version
            return _encode(_Given(given[-1], named))

        self._blobs.change(_key(run_id), next_one)
        return given[-1]

    def give_back(self, run_id: str, given: Numbered) -> None:
        """Undoes a `reserve` whose policy nobody has seen, unless another number was given meanwhile."""

        def without(before: bytes | None) -> bytes:
            known = _decode(before, run_id) or _Given(given)
            last = Numbered(given.history, given.version - 1) if known.last == given else known.last
            named = {name: version for name, version in known.operations.items() if version != given.version}
            return _encode(_Given(last, named))

        self._blobs.change(_key(run_id), without)

    def last(self, run_id: str) -> Numbered | None:
        """The last number given; None where there was none here.

        Raises:
            Internal: as `reserve`.
        """
        try:
            data = self._blobs.get(_key(run_id))
        except NotFound:
            return None
        known = _decode(data, run_id)
        return None if known is None else known.last

    @staticmethod
    def new_history() -> str:
        return secrets.token_hex(8)


def _key(run_id: str) -> str:
    return f"{check_run_id(run_id)}/{_FILE}"


def _encode(given: _Given) -> bytes:
    content = {"history": given.last.history, "version": given.last.version}
    if given.operations:
        content |= {"operations": dict(given.operations)}
    return json.dumps(content).encode()


def _decode(data: bytes | None, run_id: str) -> _Given | None:
    if data is None:
        return None
    try:
        content = json.loads(data)
        named = {str(name): int(version) for name, version in content.get("operations", {}).items()}
        return _Given(Numbered(check_name(content["history"]), int(content["version"])), named)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Internal(
            f"the policy numbers of {run_id} are damaged ({error})",
            hint="restore them, or publish under another run id",
        ) from error
