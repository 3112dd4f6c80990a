"""Frozen weights in the layout that oneDNN multiplies with, for samplers on a CPU.

Two properties matter. It is two to three times as fast as torch's own product on few rows, since nothing is laid out
anew at each call. And a row's result is the same to the bit however many rows there are, from 4 on (measured: torch
2.13 on AVX-512, one and two threads, 4 to 512 rows), which MKL promises from 12 on only.

Shapes: N tokens, I inputs of a layer, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from farstep_model.lora import LoraLayers
from farstep_model.products import HAS_ONEDNN

_ROWS_HINT = 64  # for which the layout is chosen; every number of rows can be multiplied

# oneDNN takes some 15 µs to begin, which small products are not worth. Below 256 inputs MKL gives the same bits
# (measured; it then adds up in one go), so that the choice may depend on the number of rows.
_SMALL_MULTIPLICATIONS = 1 << 19
_SHORT_INPUTS = 256


@dataclass(frozen=True, slots=True, eq=False)
class PreparedWeight:
    """A weight [O, I] and bias [O] that are only ever multiplied with: laid out for oneDNN, and as they were."""

    weight: Tensor
    plain: Tensor
    bias: Tensor | None
    fewest: int  # numbers in an input for which oneDNN pays

    def product(self, x: Tensor) -> Tensor:
        """x·weightᵀ + bias, […, O] for x […, I]."""
        if x.numel() < self.fewest:
            return functional.linear(x, self.plain, self.bias)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""))


@torch.no_grad()
def prepare(layers: LoraLayers) -> None:
    """Has the layers multiply with prepared copies of their weights from now on, where this torch and device can.

    Only passes without gradients use them: samplers' slots and the bare model. The weights stay for others.
    """
    base = layers.base
    if not HAS_ONEDNN or base.device.type != "cpu" or base.dtype != torch.float32:
        return
    for linear in layers.linears:
        if linear.prepared is None:
            weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)
            fewest = _SMALL_MULTIPLICATIONS // linear.out_features if linear.in_features < _SHORT_INPUTS else 0
            linear.prepared = PreparedWeight(weight, linear.weight.detach(), linear.bias, fewest)
