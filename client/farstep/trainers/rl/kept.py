"""A rollout in a file: a trajectory item a line, for whoever looks at what the policy did (`TrajectoryDataset`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING

from farstep.trainers.events import plain
from farstep.trainers.files import write_whole
from farstep.trainers.trajectory.from_rollout import items_of_rollout

if TYPE_CHECKING:
    from farstep.rollout import Rollout


def write_rollout(path: Path, rollout: Rollout, *, step: int, with_tokens: bool) -> None:
    """Every sample, dropped and failed ones too; a batch that is sampled again after a resumption replaces its file.

    Args:
        step: optimizer steps that had been made; in each item's metadata.

    Raises:
        OSError: it cannot be written.
    """

    def write(out: IO[str]) -> None:
        for item in items_of_rollout(rollout, with_tokens=with_tokens):
            values = item.to_dict()
            values["metadata"] = {**values["metadata"], "step": step}
            told = plain(values)
            told.pop("not_finite", None)  # an item has no such field; what is no number is null
            out.write(json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n")

    write_whole(path, write)
