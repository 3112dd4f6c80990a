"""How many optimizer steps a run makes, worked out before its first. Pure.

`max_steps` wins over epochs, and then the data come as often as it takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from farstep.trainers.errors import DataError

T = TypeVar("T")


def chunks(rows: Sequence[T], size: int | None, *, rows_per_group: int = 1) -> list[list[T]]:
    """Rows in parts of at most `size`, none of which ends inside a group; all in one where `size` is None.

    Raises:
        DataError: the rows are not whole groups.
    """
    if len(rows) % rows_per_group:
        raise DataError(
            f"{len(rows)} rows are not whole groups of {rows_per_group}",
            field="batch",
            hint="chosen, rejected, chosen, rejected, …" if rows_per_group == 2 else "",
        )
    if not rows:
        raise DataError("no rows", field="batch")
    size = rows_per_group * max(1, (size if size is not None else len(rows)) // rows_per_group)
    return [list(rows[first : first + size]) for first in range(0, len(rows), size)]


def accumulated(parts: Sequence[T], num_parts: int | None) -> list[list[T]]:
    """Parts that make one optimizer step together: all of them, or so many at a time."""
    if num_parts is None:
        return [list(parts)]
    return [list(parts[first : first + num_parts]) for first in range(0, len(parts), num_parts)]


def num_steps(num_rows: int, *, mini_bs: int | None, rows_per_group: int, accumulation: int | None) -> int:
    """Optimizer steps that one batch of so many rows makes."""
    if accumulation is None or num_rows == 0:
        return int(num_rows > 0)
    size = rows_per_group * max(1, (mini_bs if mini_bs is not None else num_rows) // rows_per_group)
    return math.ceil(math.ceil(num_rows / size) / accumulation)


@dataclass(frozen=True, slots=True)
class Horizon:
    """Of a whole run: `steps` optimizer steps in `epochs` epochs, of which the last may be cut short."""

    steps: int
    epochs: int

    @classmethod
    def of(cls, *, steps_per_epoch: int, epochs: int, max_steps: int | None) -> Horizon:
        """`steps_per_epoch` 0: there are no data, and no steps."""
        if max_steps is None or steps_per_epoch == 0:
            return cls(steps_per_epoch * epochs, epochs)
        return cls(max_steps, math.ceil(max_steps / steps_per_epoch))
