"""Who is in which row of the next decoding step: made when that changes, else carried along.

Shapes: R rows, those that only fill up the batch included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from farstep_sampler.engines.kv_rows import Cell, KVRows, Slab
from farstep_sampler.engines.model_pass import batch_size
from farstep_sampler.engines.parts import RowsPart
from farstep_sampler.engines.row_state import RowState
from farstep_sampler.scheduler import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class DecodeBatch:
    """`sequences` in the order of their slabs and rows; `longest` is the last position in each slab."""

    sequences: list[Sequence]
    slabs: list[Slab]
    longest: list[int]
    state: RowState

    @classmethod
    def of(cls, rows: KVRows, *, device: torch.device) -> DecodeBatch:
        slabs = list(rows.slabs())
        sequences = [cell.sequence for slab in slabs for cell in slab.cells]
        longest = [max(cell.sequence.position for cell in slab.cells) for slab in slabs]
        return cls(
            sequences, slabs, longest, RowState.of(sequences, num_rows=batch_size(len(sequences)), device=device)
        )

    @property
    def is_full(self) -> bool:
        """Whether a sequence has no room for its next token."""
        return any(longest >= slab.room for longest, slab in zip(self.longest, self.slabs, strict=True))

    @staticmethod
    def full_cells(slab: Slab) -> list[Cell]:
        return [cell for cell in slab.cells if cell.sequence.position >= slab.room]

    def parts(self) -> list[RowsPart]:
        parts, first = [], 0
        for slab, longest in zip(self.slabs, self.longest, strict=True):
            last = first + len(slab.cells)
            parts.append(RowsPart(slab, self.state.positions[first:last], longest))
            first = last
        return parts

    def advanced(self, tokens_R: Tensor) -> DecodeBatch:
        """The same rows after `tokens_R` were chosen for them."""
        return replace(self, longest=[longest + 1 for longest in self.longest], state=self.state.advanced(tokens_R))
