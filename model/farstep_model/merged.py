"""Linear layers that share their input, multiplied as one, for samplers.

One product instead of two or three; each layer's adapters are added to its own columns. There is only this one way,
with adapters and without, so that a row's numbers do not depend on who is in the batch. The layers go on as they were,
but their weights lie side by side in one piece of memory, or, prepared for oneDNN, only here.

Shapes: N tokens, I inputs, O outputs of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from farstep_model.lora import LoraLinear, Switch
from farstep_model.prepared import PreparedWeight
from farstep_model.slots import SlotRows


@dataclass(frozen=True, slots=True, eq=False)
class MergedLinear:
    """`sizes` are the layers' numbers of outputs, in the order of the result's columns."""

    linears: tuple[nn.Linear, ...]
    sizes: tuple[int, ...]
    weight: Tensor | PreparedWeight
    bias: Tensor | None
    switch: Switch | None

    @classmethod
    @torch.no_grad()
    def of(cls, *linears: nn.Linear) -> MergedLinear:
        """Layers of one model with the same inputs; those that are prepared are so only together from now on."""
        sizes = tuple(linear.out_features for linear in linears)
        weight_OI = torch.cat([linear.weight for linear in linears])
        bias_O = _merged_bias(linears)
        adaptable = [linear for linear in linears if isinstance(linear, LoraLinear)]
        switch = adaptable[0].switch if adaptable else None
        if len(adaptable) == len(linears) and all(linear.prepared is not None for linear in adaptable):
            for adapted in adaptable:
                adapted.prepared = None
            return cls(linears, sizes, PreparedWeight.of(weight_OI, bias_O), bias_O, switch)
        for linear, part_OI in zip(linears, weight_OI.split(sizes), strict=True):
            linear.weight.data = part_OI
        return cls(linears, sizes, weight_OI, bias_O, switch)

    def forward(self, x_NI: Tensor) -> Tensor:
        """[N, O] with what is active; without gradients."""
        if isinstance(self.weight, PreparedWeight):
            out_NO = self.weight.product(x_NI)
        else:
            out_NO = functional.linear(x_NI, self.weight, self.bias)
        source = self.switch.source if self.switch is not None else None
        if source is None:
            return out_NO
        assert isinstance(source, SlotRows)
        for linear, part in zip(self.linears, out_NO.split_with_sizes(self.sizes, dim=-1), strict=True):
            if isinstance(linear, LoraLinear) and (changed := source.add(linear, x_NI, part)) is not part:
                part.copy_(changed)
        return out_NO


def _merged_bias(linears: tuple[nn.Linear, ...]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
    )
