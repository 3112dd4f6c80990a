"""The adapters of a replica by slot, in layers that grow to the largest rank seen.

Memory and work go with the rank that the slots are laid out for, so they begin small: the first adapter of a
higher rank lays them out anew, between two steps, and costs one copy of those that are resident.

An adapter is put into the one form in which a row's numbers on CPU are the same to the bit whichever other
adapters are in the batch: a rank of at least 16, filled up with zeros, and its scaling multiplied into B.
(Measured: MKL sums in another order when a product has fewer than 12 columns. The scaling would otherwise be
applied before the second product in a mixed batch and after it in a uniform one.)

Shapes: r rank, s rank in the slot, I inputs of a layer, O outputs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from farstep_model.adapter import Adapter, LayerWeights
from farstep_model.lora import LoraLayers
from farstep_model.slots import AdapterSlots

_LEAST_RANK = 16


class AdapterTable:
    """Slots 1 … `num_slots`; slot 0 is the base model."""

    def __init__(self, layers: LoraLayers, *, num_slots: int) -> None:
        self.layers = layers
        self.num_slots = num_slots
        self._adapters: dict[int, Adapter] = {}
        self._slots = AdapterSlots(layers, num_slots + 1, _LEAST_RANK)

    def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot, in the place of what was there.

        Raises:
            InvalidInput: it has weights that are not finite.
        """
        uniform = _uniform(adapter)
        if uniform.spec.rank > self._slots.max_rank:
            self._lay_out(max_rank=uniform.spec.rank)
        self._slots.load(slot, uniform)
        self._adapters[slot] = uniform

    def active(self, slots_R: Tensor) -> AbstractContextManager[None]:
        """Computes batch row r with slot `slots_R[r]` inside the block; the slots are best given on the CPU."""
        return self._slots.active(slots_R)

    def _lay_out(self, *, max_rank: int) -> None:
        self._slots = AdapterSlots(self.layers, self.num_slots + 1, max_rank)
        for slot, adapter in self._adapters.items():
            self._slots.load(slot, adapter)


@torch.no_grad()
def _uniform(adapter: Adapter) -> Adapter:
    """The same update with a scaling of 1 and a rank of at least `_LEAST_RANK`."""
    rank = max(_LEAST_RANK, adapter.spec.rank)
    missing = rank - adapter.spec.rank
    weights = {
        layer: LayerWeights(
            nn.Parameter(functional.pad(w.a, (0, 0, 0, missing)), requires_grad=False),
            nn.Parameter(functional.pad(w.b * adapter.spec.scaling, (0, missing)), requires_grad=False),
            w.m,
        )
        for layer, w in adapter.weights.items()
    }
    return Adapter(adapter.layers, replace(adapter.spec, rank=rank, alpha=float(rank), use_rslora=False), weights)
