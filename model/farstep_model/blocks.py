"""Several adapters in one pass, a block of rows each, with the very products that each would have alone.

What belongs to one adapter (its low-rank products and their gradients) is multiplied block by block, in the shapes and
by the library of a pass alone; what is common to all (the frozen weights) is multiplied for all rows at once, by the
library that a pass alone would use. Whether the common products then give a row the same bits is up to that library
and to the shape: nobody may rely on it unmeasured.

Dropout and layers that see tokens without their rows (experts) are refused by who plans such a pass.

Shapes: N tokens of all blocks, I inputs of a layer, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers, LoraLinear
from farstep_model.products import Library, add_product, library_for, product


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Adapters with the number of tokens of each; all of one width, so that blocks of rows are blocks of tokens."""

    adapters: tuple[Adapter, ...]
    num_tokens: tuple[int, ...]

    def apply(self, linear: LoraLinear, x: Tensor) -> Tensor:
        found = [adapter.weights.get(linear.layer) for adapter in self.adapters]
        weights = [matrix for layer in found for matrix in ((layer.a, layer.b) if layer is not None else (None, None))]
        scalings = [adapter.spec.scaling for adapter in self.adapters]
        return cast(Tensor, _BlockProducts.apply(x, linear.weight, linear.bias, self.num_tokens, scalings, *weights))

    def with_rows(self, rows: Tensor) -> _Blocks:
        raise NotImplementedError("blocks of rows are computed up to the last hidden states")

    def is_mixed(self, layer: int) -> bool:
        return any(layer in adapter.weights for adapter in self.adapters)


@contextmanager
def active_blocks(layers: LoraLayers, adapters: Sequence[Adapter], num_tokens: Sequence[int]) -> Iterator[None]:
    """Computes with these adapters inside the block: the first on the first so many tokens, and so on.

    Gradients reach their parameters. Only plain LoRA: what an adapter has beyond A and B is not looked at.
    """
    with layers.switch.using(_Blocks(tuple(adapters), tuple(num_tokens)), training=False):
        yield


def _common_product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, num_tokens: Sequence[int]) -> Tensor:
    """x·weightᵀ + bias by the library of the blocks; block by block, where they do not agree on one."""
    libraries: set[Library] = {library_for(x_NI[:count], weight_OI) for count in set(num_tokens)}
    if len(libraries) == 1:
        return product(x_NI, weight_OI, bias_O, library=libraries.pop())
    return torch.cat([product(x_nI, weight_OI, bias_O) for x_nI in x_NI.split(list(num_tokens))])


class _BlockProducts(torch.autograd.Function):
    """The same steps as `products._Adapted` and `products._Frozen`, for each block."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        num_tokens: Sequence[int],
        scalings: Sequence[float],
        *weights: Tensor | None,
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        out_NO = _common_product(x_NI, weight_OI, bias_O, num_tokens)
        hidden: list[Tensor | None] = []
        for i, (x_nI, out_nO) in enumerate(_blocks(num_tokens, x_NI, out_NO)):
            a_rI, b_Or = weights[2 * i], weights[2 * i + 1]
            if a_rI is None or b_Or is None:
                hidden.append(None)
                continue
            h_nr = product(x_nI, a_rI.to(x.dtype))
            add_product(out_nO, h_nr, b_Or.to(x.dtype), scaling=scalings[i])
            hidden.append(h_nr)
        ctx.save_for_backward(x_NI, *hidden, *weights)
        ctx.weight, ctx.num_tokens, ctx.scalings = weight_OI, num_tokens, scalings
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        num_blocks = len(ctx.num_tokens)
        x_NI, hidden, weights = (
            ctx.saved_tensors[0],
            ctx.saved_tensors[1 : 1 + num_blocks],
            ctx.saved_tensors[1 + num_blocks :],
        )
        grad_NO = grad.flatten(0, -2)
        grad_NI = _common_product(grad_NO, ctx.weight.T, None, ctx.num_tokens) if ctx.needs_input_grad[0] else None
        grads: list[Tensor | None] = []
        for i, (x_nI, grad_nO) in enumerate(_blocks(ctx.num_tokens, x_NI, grad_NO)):
            a_rI, b_Or, h_nr = weights[2 * i], weights[2 * i + 1], hidden[i]
            if h_nr is None:
                grads += [None, None]
                continue
            a_rI, b_Or = a_rI.to(x_NI.dtype), b_Or.to(x_NI.dtype)
            grad_h_nr = product(grad_nO, b_Or.T).mul_(ctx.scalings[i])
            grad_b_Or = (product(h_nr.T, grad_nO.T) * ctx.scalings[i]).T.contiguous()
            grads += [product(grad_h_nr.T, x_nI.T), grad_b_Or]
            if grad_NI is not None:
                start = sum(ctx.num_tokens[:i])
                add_product(grad_NI[start : start + ctx.num_tokens[i]], grad_h_nr, a_rI.T)
        grad_x = None if grad_NI is None else grad_NI.view(*grad.shape[:-1], -1)
        return grad_x, None, None, None, None, *grads


def _blocks(num_tokens: Sequence[int], first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    sizes = list(num_tokens)
    return zip(first.split(sizes), second.split(sizes), strict=True)
