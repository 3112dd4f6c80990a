"""Published policies by run and version: the last few of each run, where samplers find them again.

    <run_id>/v<version>-<history>/adapter_model.safetensors, adapter_config.json
    <run_id>/manifest.json      which of them there are, the newest last, with the sha256 of each file

so that a reader asks for one small blob to learn what is new, and plain peft loads a policy's folder. The trainer
keeps such a shelf in its store, and another one at its weight-sync URI. One process writes a run's shelf; any
number read.

Invariant: what `read` gives is exactly what one `put` was given. Files come before the manifest that names
them, and leave after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from farstep_infra.store.blobs import Blobs
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.manifest import StoredFile
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import check_name, check_run_id, is_run_id

FOLDER = "policies~"  # of a checkpoint store: no run has this name
_MANIFEST = "manifest.json"
_FORMAT = 1
_READ_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class ShelvedPolicy:
    """One version of a run's adapter as files; `history` is that of the run's numbering."""

    run_id: str
    version: int
    history: str
    published_at: float  # seconds since the epoch
    files: Mapping[str, bytes]
    project: str = ""  # whose the run is; empty: the operators'


@dataclass(frozen=True, slots=True)
class Listed:
    """A policy as the manifest names it."""

    version: int
    published_at: float
    files: Mapping[str, StoredFile]


@dataclass(frozen=True, slots=True)
class Shelf:
    """A run's manifest; `policies` by version, ascending, never empty."""

    run_id: str
    history: str
    policies: tuple[Listed, ...]
    project: str = ""

    @property
    def newest(self) -> Listed:
        return self.policies[-1]

    def key(self, policy: Listed, file: str = "") -> str:
        return f"{self.run_id}/v{policy.version}-{self.history}/{file}"


class PolicyShelves:
    """The shelves of all runs in one place.

    Args:
        keep: how many policies of each run stay.
    """

    def __init__(self, blobs: Blobs, *, keep: int) -> None:
        assert keep >= 1
        self._blobs = blobs
        self._keep = keep

    @classmethod
    def of_store(cls, store: CheckpointStore, *, keep: int = 1) -> PolicyShelves:
        """Those in the private part of a checkpoint store."""
        return cls(store.private(FOLDER), keep=keep)

    def put(self, policy: ShelvedPolicy) -> None:
        """Adds a policy, and removes those beyond `keep` and those of another history.

        Raises:
            Internal: it cannot be written; the manifest is as it was.
        """
        before = self._shelf_or_none(policy.run_id)
        same = before is not None and before.history == policy.history
        others = [p for p in before.policies if p.version != policy.version] if before is not None and same else []
        listed = Listed(policy.version, policy.published_at, {n: StoredFile.of(d) for n, d in policy.files.items()})
        kept = sorted([*others, listed], key=lambda p: p.version)[-self._keep :]
        after = Shelf(policy.run_id, policy.history, tuple(kept), policy.project)
        for name, data in policy.files.items():
            self._blobs.put(after.key(listed, check_name(name, field="files")), data)
        self._blobs.put(f"{check_run_id(policy.run_id)}/{_MANIFEST}", _encode(after))
        if before is not None:
            stay = {after.key(p) for p in kept}
            self._remove([(before, p) for p in before.policies if before.key(p) not in stay])

    def shelf(self, run_id: str) -> Shelf:
        """What there is of a run.

        Raises:
            NotFound: nothing.
            InvalidInput: its manifest is damaged.
        """
        return _decode(self._blobs.get(f"{check_run_id(run_id)}/{_MANIFEST}"), run_id)

    def read(self, run_id: str, version: int) -> ShelvedPolicy:
        """One policy, its files checked against their sha256.

        Raises:
            NotFound: it is not kept any more, or never was.
            InvalidInput: it is damaged.
        """
        for attempt in range(_READ_ATTEMPTS):
            shelf = self.shelf(run_id)
            policy = next((p for p in shelf.policies if p.version == version), None)
            if policy is None:
                there = ", ".join(str(p.version) for p in shelf.policies)
                raise NotFound(f"version {version} of {run_id} is not kept any more; there are {there}")
            try:
                files = {name: self._checked(shelf, policy, name) for name in policy.files}
            except NotFound:  # it has left between the two looks
                if attempt == _READ_ATTEMPTS - 1:
                    raise
                continue
            return ShelvedPolicy(run_id, version, shelf.history, policy.published_at, files, shelf.project)
        raise AssertionError("unreachable")

    def runs(self) -> list[str]:
        """The runs that may have a shelf; whatever else lies there is passed over."""
        return [name for name in self._blobs.list() if is_run_id(name)]

    def sweep(self, *, before: float) -> int:
        """Removes the shelves on which nothing was put since `before` (seconds since the epoch); how many."""
        num_removed = 0
        for run_id in self.runs():
            shelf = self._shelf_or_none(run_id)
            if shelf is not None and shelf.newest.published_at < before:
                self._blobs.delete(f"{run_id}/{_MANIFEST}")
                self._remove([(shelf, policy) for policy in shelf.policies])
                num_removed += 1
        return num_removed

    def _shelf_or_none(self, run_id: str) -> Shelf | None:
        """A damaged manifest is as none: what it named cannot be found, and the next `put` replaces it."""
        try:
            return self.shelf(run_id)
        except (NotFound, InvalidInput):
            return None

    def _checked(self, shelf: Shelf, policy: Listed, name: str) -> bytes:
        data = self._blobs.get(shelf.key(policy, name))
        if StoredFile.of(data) != policy.files[name]:
            raise InvalidInput(f"{shelf.key(policy, name)} is damaged: its sha256 is another than the manifest says")
        return data

    def _remove(self, leaving: list[tuple[Shelf, Listed]]) -> None:
        for shelf, policy in leaving:
            for name in policy.files:
                self._blobs.delete(shelf.key(policy, name))


def _encode(shelf: Shelf) -> bytes:
    policies = [
        {**asdict(policy), "files": {name: file._asdict() for name, file in policy.files.items()}}
        for policy in shelf.policies
    ]
    content = {
        "format": _FORMAT,
        "run_id": shelf.run_id,
        "project": shelf.project,
        "history": shelf.history,
        "policies": policies,
    }
    return json.dumps(content, indent=1, allow_nan=False).encode()


def _decode(data: bytes, run_id: str) -> Shelf:
    try:
        content = json.loads(data)
        if content["format"] != _FORMAT or content["run_id"] != run_id or not content["policies"]:
            raise ValueError("it is of another format or another run, or empty")
        policies = tuple(_listed(policy) for policy in content["policies"])
        return Shelf(run_id, check_name(content["history"]), policies, str(content.get("project", "")))
    except (ValueError, KeyError, TypeError, AttributeError, InvalidInput) as error:
        raise InvalidInput(f"the manifest of {run_id}'s policies is damaged ({error})") from error


def _listed(policy: Mapping[str, object]) -> Listed:
    version, published_at, files = policy["version"], policy["published_at"], policy["files"]
    if not (isinstance(version, int) and isinstance(published_at, float) and isinstance(files, dict)):
        raise ValueError("a policy that is none")
    stored = {check_name(name): StoredFile(int(f["size_bytes"]), str(f["sha256"])) for name, f in files.items()}
    return Listed(version, published_at, stored)
