"""Names and checkpoint paths, checked before they become anything on a disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from farstep_proto.errors import InvalidInput

Kind = Literal["weights", "sampler_weights", "external_weights"]  # the last is for people to download

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_RUN_ID = re.compile(r"[A-Za-z0-9_:.-]{1,128}\Z")
_PATH = re.compile(
    r"(?:bt://loops:|tinker://)(?P<run>[^/]+)/(?P<kind>(?:sampler_|external_)?weights)/(?P<name>[^/]+)\Z"
)
_KINDS: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}


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
    """`bt://loops:<run_id>/<kind>/<name>`; the `tinker://<run_id>/…` form reads as the same thing."""

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
        return cls(
            check_run_id(match["run"], field=field), _KINDS[match["kind"]], check_name(match["name"], field=field)
        )

    def __str__(self) -> str:
        return f"bt://loops:{self.run_id}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """The same without the scheme; unique on a server."""
        return f"{self.run_id}/{self.kind}/{self.name}"

    @classmethod
    def from_checkpoint_id(cls, checkpoint_id: str) -> CheckpointPath:
        """Also takes a full path."""
        path = checkpoint_id if "://" in checkpoint_id else f"bt://loops:{checkpoint_id}"
        return cls.parse(path, field="checkpoint_id")
