"""What a checkpoint store stands on: a place that holds sets of files, each with a manifest, whole or absent.

It knows names and bytes; what a manifest says, who may replace what, and what has expired is the store's to know.
Two implementations: directories of this machine (`directories`), objects of a bucket (`objects`).

Invariant: a set is changed by one writer at a time. What a writer decides on is what it changes: a decision is a
function of what is there, and is taken again where that has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from farstep_infra.store.blobs import Blobs
from farstep_infra.store.manifest import Manifest
from farstep_proto.names import KINDS, CheckpointPath, Kind

ABANDONED_S = 86_400.0  # what a writer left that long ago has no writer any more


@dataclass(frozen=True, slots=True)
class Found:
    """A set that has a manifest, as it was when it was looked at.

    Args:
        manifest: its bytes, perhaps damaged.
        place: where its files are, in the backing's own terms.
        tag: another one whenever the manifest was written anew.
    """

    manifest: bytes
    place: str
    tag: str


class Backing(Protocol):
    """Calls block, and may be made from any thread and any number of processes. Paths are checked by the caller.

    Every call may raise Internal: the place does not answer, or refuses, or is full; the message says what to do.
    """

    def find(self, path: CheckpointPath) -> Found | None: ...

    def is_incomplete(self, path: CheckpointPath) -> bool:
        """Whether there is something of that name although `find` finds nothing."""
        ...

    def read_file(self, found: Found, name: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def put(
        self,
        path: CheckpointPath,
        files: Mapping[str, bytes],
        manifest: Manifest,
        *,
        may_replace: Callable[[Found | None], None],
    ) -> None:
        """Files first, the manifest last; `may_replace` raises where what is there is not to be replaced."""
        ...

    def change(self, path: CheckpointPath, changed: Callable[[Found | None], bytes]) -> None:
        """Replaces the manifest alone; `changed` raises where there is nothing to change."""
        ...

    def remove(self, path: CheckpointPath, *, only_if: Callable[[Found | None], bool]) -> bool:
        """Removes whatever is there under that name; False where there is nothing, or `only_if` says no."""
        ...

    def names(self, run_id: str, kind: Kind) -> list[str]: ...

    def runs(self) -> list[str]: ...

    def sweep_abandoned(self, run_id: str, *, before: float) -> int:
        """Removes what writers left unfinished before then (seconds since the epoch); how much."""
        ...

    def private(self, folder: str) -> Blobs:
        """What lies in a folder that is no run's."""
        ...

    def file_path(self, found: Found, name: str) -> Path | None:
        """The file on this machine; None where there is none."""
        ...

    def signed_url(self, found: Found, name: str, *, ttl_s: int) -> str | None:
        """An address from which anybody fetches the file without a key; None where this place signs none."""
        ...


def all_paths(backing: Backing, run_id: str) -> Iterator[CheckpointPath]:
    for kind in KINDS:
        yield from (CheckpointPath(run_id, kind, name) for name in backing.names(run_id, kind))
