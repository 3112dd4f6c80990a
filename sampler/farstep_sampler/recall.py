"""Where a policy that has left its slot comes from again: memory, the store, the trainer, in the order given.

It loads nothing. It tells apart "nobody keeps it any more", which is for ever, and "nobody can say just now".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from farstep_infra.store.policies import PolicyShelves
from farstep_infra.store.policy_archive import PolicyArchive
from farstep_proto.errors import ApiError, NotFound
from farstep_sampler.versions import PolicyId

DEFAULT_RECENT_BYTES = 256 << 20

PolicyFiles = Mapping[str, bytes]  # PEFT's files; the weights alone where the config is in their metadata


class PolicySource(Protocol):
    async def fetch(self, policy: PolicyId) -> PolicyFiles:
        """Raises NotFound where it has it no more, another ApiError where it cannot tell."""
        ...


class RecentPolicies:
    """The policies that came last, up to a number of bytes."""

    def __init__(self, *, max_bytes: int = DEFAULT_RECENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._files: OrderedDict[PolicyId, PolicyFiles] = OrderedDict()

    def put(self, policy: PolicyId, files: PolicyFiles) -> None:
        self.forget(policy)
        self._files[policy] = files
        self._num_bytes += _size(files)
        while self._num_bytes > self._max_bytes:
            self.forget(next(iter(self._files)))

    def forget(self, policy: PolicyId) -> None:
        files = self._files.pop(policy, None)
        if files is not None:
            self._num_bytes -= _size(files)

    async def fetch(self, policy: PolicyId) -> PolicyFiles:
        try:
            return self._files[policy]
        except KeyError:
            raise NotFound(f"{policy} did not come lately") from None


class StoreSource:
    """What the trainer left in a store that it shares with this sampler."""

    def __init__(self, archive: PolicyArchive) -> None:
        self._archive = archive

    async def fetch(self, policy: PolicyId) -> PolicyFiles:
        found = await asyncio.to_thread(self._archive.read, policy.source, policy.version, history=policy.history)
        return found.files


class ShelfSource:
    """What there is at a weight-sync URI."""

    def __init__(self, shelves: PolicyShelves) -> None:
        self._shelves = shelves

    async def fetch(self, policy: PolicyId) -> PolicyFiles:
        found = await asyncio.to_thread(self._shelves.read, policy.source, policy.version)
        if found.history != policy.history:
            raise NotFound(f"{policy} is of another history there")
        return found.files


class Archive:
    """Several sources as one."""

    def __init__(self, sources: Sequence[PolicySource]) -> None:
        self._sources = sources

    async def fetch(self, policy: PolicyId) -> PolicyFiles:
        unsure: ApiError | None = None
        for source in self._sources:
            try:
                return await source.fetch(policy)
            except NotFound:
                continue
            except ApiError as error:
                unsure = error
        raise unsure or NotFound(f"nobody keeps {policy} any more")


def _size(files: PolicyFiles) -> int:
    return sum(map(len, files.values()))
