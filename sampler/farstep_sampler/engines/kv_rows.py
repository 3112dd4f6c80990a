"""The keys and values of running sequences, sorted into slabs by length.

A slab is one array per layer in which every row has room for the same number of tokens, so that attention reads rows
where they lie, in one product. A sequence begins in the smallest slab that it fits into and moves on when it has
grown out of it: no row is more than about twice as long as its sequence, whatever its neighbours need. (Blocks of a
few tokens would waste less, but attention would have to gather them at every step: on a CPU that costs more than the
attention itself.) Rows have no padding to the left, and stay dense: the last row moves where one leaves.

Budget: rows × room of all slabs, whether rows are in use or not, and what is reserved for sequences about to start.
Only while sequences move to longer rows do they count twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.scheduler import Sequence

COLUMN_MULTIPLE = 64
_LEAST_GROWTH = 4  # rows


@dataclass(slots=True, eq=False)
class Cell:
    """Where one sequence lies at present; moves with it."""

    slab: Slab
    row: int
    sequence: Sequence


@dataclass(slots=True, eq=False)
class Slab:
    """Rows for `room` tokens each: `arrays` [rows, H, room, D] for keys, then values, of every layer."""

    room: int
    arrays: list[Tensor]
    cells: list[Cell] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return self.arrays[0].shape[0]


class KVRows:
    """All slabs of one engine.

    Args:
        budget_tokens: most tokens there is room for.
        longest: the most tokens that a sequence can have.
    """

    def __init__(self, shape: KVShape, *, budget_tokens: int, longest: int) -> None:
        self.shape = shape
        self.budget_tokens = budget_tokens
        self.reserved = 0  # tokens
        self._rooms = tuple(_rooms(longest))
        self._slabs: dict[int, Slab] = {}

    def slabs(self) -> Iterator[Slab]:
        """Those with rows in use, the shortest first."""
        return (self._slabs[room] for room in sorted(self._slabs) if self._slabs[room].cells)

    def room_for(self, num_tokens: int) -> int:
        """How long a row is made for a sequence of that many tokens."""
        return next(room for room in self._rooms if room >= num_tokens)

    @property
    def used(self) -> int:
        """Tokens that rows in use have room for, and those reserved."""
        return self.reserved + sum(slab.room * len(slab.cells) for slab in self._slabs.values())

    def admits(self, wanted: int, *, num_context: int, num_tokens: int) -> int:
        """How many rows for `num_tokens` each there is room for, besides a context that is still to be computed."""
        if self.used == 0:
            free = max(self.budget_tokens - num_context, self.room_for(num_tokens))  # one sequence always fits
        else:
            free = self.budget_tokens - self.used - num_context
        return min(wanted, max(0, free) // self.room_for(num_tokens))

    def start(self, sequences: Seq[Sequence], num_tokens: int) -> list[Cell]:
        """New rows, side by side, for sequences of `num_tokens`; what they hold is to be written."""
        room = self.room_for(num_tokens)
        slab = self._slabs.setdefault(room, Slab(room, self.shape.zeros(0, room)))
        self._reserve(slab, len(slab.cells) + len(sequences))
        cells = [Cell(slab, len(slab.cells) + i, sequence) for i, sequence in enumerate(sequences)]
        slab.cells += cells
        return cells

    def can_grow(self, cells: Seq[Cell]) -> bool:
        """Whether there is room for sequences of one slab in the next one, beside those that stay."""
        room = cells[0].slab.room
        more = (self.room_for(room + 1) - room) * len(cells)
        return self.used + more <= self.budget_tokens or self.used == room

    def grow(self, cells: Seq[Cell]) -> None:
        """Moves sequences of one slab, which fill it, to where the next token has room too."""
        old = cells[0].slab
        targets = self.start([cell.sequence for cell in cells], old.room + 1)
        new = targets[0].slab
        sources_N, targets_N = self._rows(cells), self._rows(targets)
        for before, after in zip(old.arrays, new.arrays, strict=True):
            after[targets_N, :, : old.room] = before[sources_N]
        self.end(cells)
        for cell, target in zip(cells, targets, strict=True):
            cell.slab, cell.row = new, target.row
            new.cells[target.row] = cell
        if self._allocated() > self.budget_tokens:  # while they moved, they lay in both
            self._give_back()

    def end(self, cells: Seq[Cell]) -> None:
        """Gives rows back; the last rows of their slab move into the holes."""
        for cell in cells:
            slab, last = cell.slab, cell.slab.cells.pop()
            if last is not cell:
                for array in slab.arrays:
                    array[cell.row] = array[last.row]
                slab.cells[cell.row], last.row = last, cell.row
            if not slab.cells:
                del self._slabs[slab.room]

    def write(self, cells: Seq[Cell], arrays: Seq[Tensor], num_tokens: int) -> None:
        """Puts a context, [H, T, D] for keys, then values, of every layer, into rows that lie side by side."""
        first, last = cells[0].row, cells[-1].row + 1
        for stored, context in zip(cells[0].slab.arrays, arrays, strict=True):
            stored[first:last, :, :num_tokens] = context[:, :num_tokens]

    def clear(self, cell: Cell) -> None:
        """Empties a row that may hold numbers that are not finite, which would reach whoever gets it next."""
        for array in cell.slab.arrays:
            array[cell.row] = 0

    def _rows(self, cells: Seq[Cell]) -> Tensor:
        return torch.tensor([cell.row for cell in cells], device=self.shape.device)

    def _reserve(self, slab: Slab, num_rows: int) -> None:
        if num_rows <= slab.num_rows:
            return
        wanted = max(num_rows, slab.num_rows + max(_LEAST_GROWTH, slab.num_rows // 2))
        if self._allocated() + (wanted - slab.num_rows) * slab.room > self.budget_tokens:
            self._give_back(but=slab)
            spare = (self.budget_tokens - self._allocated()) // slab.room
            wanted = max(num_rows, min(wanted, slab.num_rows + spare))
        self._resize(slab, wanted)

    def _give_back(self, *, but: Slab | None = None) -> None:
        """Leaves the slabs no more rows than are in use."""
        for slab in self._slabs.values():
            if slab is not but:
                self._resize(slab, len(slab.cells))

    def _allocated(self) -> int:
        return sum(slab.room * slab.num_rows for slab in self._slabs.values())

    def _resize(self, slab: Slab, num_rows: int) -> None:
        if num_rows == slab.num_rows:
            return
        used, new = len(slab.cells), self.shape.zeros(num_rows, slab.room)
        for old, array in zip(slab.arrays, new, strict=True):
            array[:used] = old[:used]
        slab.arrays = new


def columns_for(num_tokens: int) -> int:
    """How many columns attention is given for that many tokens.

    On a CPU a row's numbers are then the same to the bit however many columns the longest row in its company asks for
    (measured: torch's attention takes 512 columns at a time, and MKL sums 256 to 383 in another order).
    """
    rounded = -(-num_tokens // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    rest = rounded % 512
    return rounded + 384 - rest if rest in (256, 320) else rounded


def _rooms(longest: int) -> Iterator[int]:
    """64, 128, 192, 384, 896, 1920 …, and last what the longest sequence needs."""
    most, room = columns_for(longest), 64
    while room < most:
        yield room
        room = columns_for(room + 64 if room < 192 else 2 * room)
    yield most
