"""What becomes of an adapter that is published: a number that never comes again, and copies where samplers look.

The number is on the disk before anyone hears of it. The bytes then go to the feed at once, to the store's shelf and to
the weight-sync URI soon; until they are there they are found here. It knows neither runs nor gRPC.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_infra.store.policy_archive import PolicyArchive
from farstep_infra.store.policy_numbers import Numbered, PolicyNumbers
from farstep_model.adapter import Adapter
from farstep_model.peft_format import CONFIG_FILE, TENSORS_FILE, encode_config
from farstep_proto.errors import ApiError, InvalidInput, NotFound
from farstep_worker.feed import Policy
from farstep_worker.operations import split_operation_id
from farstep_worker.shelf_writer import ShelfWriter

log = logging.getLogger(__name__)

DEFAULT_KEEP = 16
_UNUSED_S = 7 * 86_400.0  # a run that published nothing for so long has its policies removed, not its numbers
_URI_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class WeightSync:
    """A place that samplers poll instead of a feed."""

    uri: str
    shelves: PolicyShelves


class Publisher:
    """Of one trainer.

    Args:
        keep: how many policies of each run stay in the store, besides those that were given a name.
    """

    def __init__(self, store: CheckpointStore, *, keep: int = DEFAULT_KEEP, sync: WeightSync | None = None) -> None:
        self._store = store
        self._keep = keep
        self._sync = sync
        self._numbers = PolicyNumbers(store)
        self._archive = PolicyArchive(store)
        self._shelves = PolicyShelves.of_store(store, keep=keep)
        self._to_store = ShelfWriter(self._shelves, name="in the store", skips=False)
        self.is_over: Callable[[str], bool] = lambda operation: True  # it will not be repeated
        self._to_uri: ShelfWriter | None = None
        if sync is not None:
            self._to_uri = ShelfWriter(sync.shelves, name=f"at {sync.uri}", skips=True, retries_s=_URI_RETRIES_S)

    @property
    def has_sync(self) -> bool:
        return self._sync is not None

    def reserve(self, run_id: str, *, above: int, operation: str = "") -> Numbered:
        """The run's next version. Give it to `publish`, or back. The same `operation` gets the same again.

        Raises:
            Internal: the store's disk refuses; no number was taken.
        """
        return self._numbers.reserve(
            run_id,
            above=above,
            begin=lambda: self._begun_elsewhere(run_id),
            operation=operation,
            is_over=self.is_over,
            is_void=lambda earlier: self.is_over(earlier) and _precedes(earlier, operation),
        )

    def give_back(self, run_id: str, number: Numbered) -> None:
        """Of a policy that was not made. Where the disk refuses that too, the run's next operation takes the number."""
        try:
            self._numbers.give_back(run_id, number)
        except ApiError as error:
            log.warning("version %d of %s is not given back: %s", number.version, run_id, error)

    def publish(self, run_id: str, number: Numbered, adapter: Adapter, *, project: str = "") -> Policy:
        """The policy for the feed, with its copies on their way."""
        data = adapter.to_bytes()
        config = encode_config(adapter.peft_config(adapter.layers.base.name))
        files = {TENSORS_FILE: data, CONFIG_FILE: config}
        shelved = ShelvedPolicy(run_id, number.version, number.history, time.time(), files, project)
        self._to_store.put(shelved)
        if self._to_uri is not None:
            self._to_uri.put(shelved)
        return Policy.of(
            run_id,
            version=number.version,
            data=data,
            published_at=shelved.published_at,
            history=number.history,
            project=project,
        )

    def read(self, run_id: str, version: int, *, history: str) -> Policy:
        """A policy that was published before; blocks.

        Raises:
            NotFound: it is not kept any more, or never was.
            InvalidInput: what is kept is damaged.
        """
        found = self._to_store.waiting(run_id, version)
        if found is None or history not in ("", found.history):
            found = self._archive.read(run_id, version, history=history)
        return Policy.of(
            run_id,
            version=version,
            data=found.files[TENSORS_FILE],
            published_at=found.published_at,
            history=found.history,
            config=found.files[CONFIG_FILE],
            project=found.project,
        )

    def ensure(self, run_id: str, version: int, adapter: Adapter, *, project: str = "") -> None:
        """Publishes a version again whose copies were lost on their way; `adapter` is as it was then. Blocks.

        Raises:
            Internal: the store cannot be read.
        """
        number = self._numbers.last(run_id)
        if number is None or version <= number.version - self._keep:
            return  # by now it would have left the shelf
        try:
            self.read(run_id, version, history=number.history)
        except (NotFound, InvalidInput):
            self.publish(run_id, Numbered(number.history, version), adapter, project=project)

    def newest(self, run_id: str, version: int) -> Policy | None:
        """What the feed offers of a run that was here before, also once more to the URI where that lacks it; blocks."""
        try:
            policy = self.read(run_id, version, history="")
        except (NotFound, InvalidInput):
            return None
        if self._to_uri is not None and not self._is_at_uri(run_id, version, policy.history):
            files = {TENSORS_FILE: policy.data, CONFIG_FILE: policy.config}
            again = ShelvedPolicy(run_id, version, policy.history, policy.published_at, files, policy.project)
            self._to_uri.put(again)
        return policy

    def is_on_shelf(self, run_id: str, timeout_s: float) -> bool:
        """Waits until nothing of a run is on its way to the store; whether all of it arrived."""
        return self._to_store.settle(run_id, timeout_s)

    def sweep(self) -> int:
        """Removes the policies of runs that have published nothing for a week; how many runs. Blocks."""
        return self._shelves.sweep(before=time.time() - _UNUSED_S)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Waits until all copies are made or given up; whether they are."""
        return self._to_store.flush(timeout_s) and (self._to_uri is None or self._to_uri.flush(timeout_s))

    def _is_at_uri(self, run_id: str, version: int, history: str) -> bool:
        assert self._sync is not None
        try:
            shelf = self._sync.shelves.shelf(run_id)
        except ApiError:
            return False
        return shelf.history == history and shelf.newest.version >= version

    def _begun_elsewhere(self, run_id: str) -> Numbered | None:
        """Where the store has lost a run's numbers, or never had them: its place at the URI, and its checkpoints."""
        versions = [manifest.meta.get("policy_version") for manifest in self._store.list(run_id)]
        named = max((version for version in versions if isinstance(version, int)), default=0)
        if self._sync is not None:
            try:
                shelf = self._sync.shelves.shelf(run_id)
            except ApiError:
                pass  # nothing there, or nobody can tell: the first write to it will say so
            else:
                return Numbered(shelf.history, max(named, shelf.newest.version))
        return Numbered(self._numbers.new_history(), named) if named else None


def _precedes(earlier: str, later: str) -> bool:
    """Whether both are operations of one run, in this order."""
    (run, seq), (its_run, its_seq) = split_operation_id(earlier), split_operation_id(later)
    return run == its_run and seq < its_seq
