"""Old policies of a store: from the shelves of what was published, else from a checkpoint that was named."""

from __future__ import annotations

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_proto.errors import InvalidInput, NotFound


class PolicyArchive:
    """Reads, and writes nothing; calls block."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._shelves = PolicyShelves.of_store(store)

    def read(self, run_id: str, version: int, *, history: str) -> ShelvedPolicy:
        """The policy of that number in that history; `history` empty is any.

        Raises:
            NotFound: it is not kept any more, or never was here.
            InvalidInput: it is damaged.
        """
        try:
            found = self._shelves.read(run_id, version)
        except NotFound as missing:
            return self._named(run_id, version, history, missing)
        except InvalidInput:
            return self._named(run_id, version, history, None)
        if history and found.history != history:
            raise NotFound(f"version {version} of {run_id} here is of another history")
        return found

    def _named(self, run_id: str, version: int, history: str, missing: NotFound | None) -> ShelvedPolicy:
        for manifest in reversed(self._store.list(run_id)):
            meta = manifest.meta
            is_it = manifest.path.kind == "sampler_weights" and meta.get("policy_version") == version
            if is_it and (not history or meta.get("history") == history):
                _, files = self._store.read(manifest.path)
                history = str(meta.get("history", ""))
                return ShelvedPolicy(run_id, version, history, manifest.created_at, files, manifest.project)
        raise missing or NotFound(f"version {version} of {run_id} is damaged, and no checkpoint has it")
