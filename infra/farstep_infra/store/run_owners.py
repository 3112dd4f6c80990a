"""Whose each run of a store is, also when no trainer knows the run any more.

Checkpoints, policies and their numbers are kept under a run's id, so that an id that came into other hands would bring
them along.

Invariant: a run id of a store belongs to one project for ever, or to the operators, whose project is empty.
"""

from __future__ import annotations

import json

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policy_numbers import PolicyNumbers
from farstep_proto.errors import Conflict, Internal, NotFound
from farstep_proto.names import check_run_id
from farstep_serving.keys import Caller

_FOLDER = "owners~"
_FILE = "owner.json"


class RunOwners:
    """Of one store, in its private part; calls block."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._blobs = store.private(_FOLDER)

    def claim(self, run_id: str, project: str, caller: Caller) -> str:
        """The project that a run belongs to from now on: `project`, unless an operator names none and it has one.

        Raises:
            Conflict: it belongs to another; whoever may not see that one is told no more than that.
            Internal: the store is full or refuses, or what is in it is damaged.
        """
        owner = self._of(run_id)
        if owner is None:
            self._blobs.change(_key(run_id), lambda before: before or self._first(run_id, project, caller))
            owner = self._of(run_id)  # two may have come at once
            assert owner is not None
        if owner != project and not (caller.is_operator and not project):
            raise _taken(run_id, owner, caller)
        return owner

    def _of(self, run_id: str) -> str | None:
        try:
            data = self._blobs.get(_key(run_id))
        except NotFound:
            return None
        try:
            return str(json.loads(data)["project"])
        except (ValueError, KeyError, TypeError) as error:
            raise Internal(f"whose run {run_id} is cannot be read ({error})", hint="choose another run_id") from error

    def _first(self, run_id: str, project: str, caller: Caller) -> bytes:
        """What was there before owners were noted is the operators' to give away."""
        if not caller.is_operator and (PolicyNumbers(self._store).last(run_id) or self._store.list(run_id)):
            raise taken(run_id)
        return json.dumps({"project": project}).encode()


def taken(run_id: str) -> Conflict:
    """What is said of a run id that belongs to somebody whom the caller may not know of."""
    return Conflict(f"run id {run_id!r} is taken", field="run_id", hint="choose another run_id")


def _taken(run_id: str, owner: str, caller: Caller) -> Conflict:
    if not caller.is_operator:
        return taken(run_id)
    whose = f"project {owner!r}" if owner else "the operators"
    return Conflict(f"run {run_id} belongs to {whose}", field="project", hint="choose another run_id")


def _key(run_id: str) -> str:
    return f"{check_run_id(run_id)}/{_FILE}"
