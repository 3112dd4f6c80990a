"""Names and checkpoint paths, checked before they become anything on a disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from farstep_proto.errors import InvalidInput

Kind = Literal["weights", "sampler_weights", "external_weights"]
KINDS: tuple[Kind, ...] = ("weights", "sampler_weights", "external_weights")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_RUN_ID = re.compile(r"[A-Za-z0-9_:.-]{1,128}\Z")
_PATH = re.compile(rf"(?:bt://loops:|tinker://)(?P<run>[^/]+)/(?P<kind>{'|'.join(KINDS)})/(?P<name>[^/]+)\Z")


def check_name(name: str, *, field: str = "name") -> str:
    """Returns a checkpoint name as it is, or refuses it.

    Raises:
        InvalidInput: not 1 to 128 of letters, digits, `.`, `_`, `-`, or a name of dots alone.
    """
    if not _NAME.match(name) or not name.strip("."):
        raise InvalidInput(
            f"{name!r} is not a name: 1 to 128 letters, digits, '.', '_' or '-', not dots alone", field=field
        )
    return name


def check_run_id(run_id: str, *, field: str = "run_id") -> str:
    """Returns a run id as it is, or refuses it (same rule as names, `:` allowed)."""
    if not is_run_id(run_id):
        raise InvalidInput(f"{run_id!r} is not a run id", field=field)
    return run_id


def is_run_id(name: str) -> bool:
    return bool(_RUN_ID.match(name) and name.strip("."))


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """`bt://loops:<run_id>/<kind>/<name>`; the `tinker://<run_id>/…` form reads as the same thing.

    `weights` is what training goes on from, `sampler_weights` what samplers serve, `external_weights` the adapter alone
    for other programs.
    """

    run_id: str
    kind: Kind
    name: str

    @classmethod
    def parse(cls, path: str, *, field: str = "path") -> CheckpointPath:
        match = _PATH.match(path)
        if match is None:
            raise InvalidInput(
                f"{path!r} is not a checkpoint path",
                field=field,
                hint="it looks like bt://loops:<run_id>/weights/<name> or …/sampler_weights/<name>",
            )
        kind = cast("Kind", match["kind"])
        return cls(check_run_id(match["run"], field=field), kind, check_name(match["name"], field=field))

    def __str__(self) -> str:
        return f"bt://loops:{self.run_id}/{self.kind}/{self.name}"

    @property
    def tinker_path(self) -> str:
        """The same as Tinker's clients write it."""
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """The same without the scheme; unique on a server."""
        return f"{self.run_id}/{self.kind}/{self.name}"

    @classmethod
    def from_checkpoint_id(cls, checkpoint_id: str) -> CheckpointPath:
        """Also takes a full path."""
        path = checkpoint_id if "://" in checkpoint_id else f"bt://loops:{checkpoint_id}"
        return cls.parse(path, field="checkpoint_id")
