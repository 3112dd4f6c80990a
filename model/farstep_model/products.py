"""The matrix products that training runs on: a frozen linear layer, plain or with a low-rank update, and its gradients.

Written out because autograd would do more: keep inputs that only the gradient of a frozen weight needs, and add up in
passes of their own what one product can leave in place. Which library multiplies depends on shape, dtype and device
alone, so that the same call always gives the same bits. Samplers do not compute with this: there a sequence's numbers
must not depend on how many others share its batch.

Shapes: N tokens, I inputs of a layer, O outputs, r rank.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# torch multiplies fp32 through MKL, which uses half the width of the vector units on processors that are not Intel's;
# oneDNN, which torch carries too, uses all of it. Preparing a new shape costs it some 0.5 ms, so small products stay.
HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # no public name promises it
)
MIN_ONEDNN_MULTIPLICATIONS = 1 << 22


Library: TypeAlias = Literal["torch", "onednn"]


def library_for(x_NI: Tensor, weight_OI: Tensor) -> Library:
    """What multiplies tensors of these shapes."""
    return "onednn" if _is_for_onednn(x_NI, weight_OI) else "torch"


def product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, library: Library | None = None) -> Tensor:
    """x·weightᵀ + bias, [N, O], without a graph; by the library that is for it, unless one is given."""
    if (library or library_for(x_NI, weight_OI)) == "onednn":
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], ""))
    return functional.linear(x_NI, weight_OI, bias_O)


def add_product(out_NO: Tensor, x_NI: Tensor, weight_OI: Tensor, *, scaling: float = 1.0) -> Tensor:
    """Adds scaling·x·weightᵀ into `out`, which is given back; without a graph."""
    if _is_for_onednn(x_NI, weight_OI):
        return out_NO.add_(product(x_NI, weight_OI), alpha=scaling)
    return out_NO.addmm_(x_NI, weight_OI.T, alpha=scaling)


def frozen_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`functional.linear` for x […, I] whose weight and bias never get a gradient."""
    return cast(Tensor, _Frozen.apply(x, weight_OI, bias_O))


def adapted_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, *, scaling: float
) -> Tensor:
    """x·weightᵀ + bias + scaling·(x·aᵀ)·bᵀ for x […, I]; gradients reach x, a and b."""
    return cast(Tensor, _Adapted.apply(x, weight_OI, bias_O, a_rI, b_Or, scaling))


def _is_for_onednn(x_NI: Tensor, weight_OI: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x_NI.device.type == "cpu"
        and x_NI.dtype == torch.float32
        and x_NI.numel() * weight_OI.shape[0] >= MIN_ONEDNN_MULTIPLICATIONS
    )


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.weight = weight_OI
        return product(x.flatten(0, -2), weight_OI, bias_O).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = product(grad.flatten(0, -2), ctx.weight.T).view(*grad.shape[:-1], -1)
        return grad_x, None, None


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        h_Nr = product(x_NI, a_rI)
        ctx.save_for_backward(x_NI, h_Nr, a_rI, b_Or)
        ctx.weight, ctx.scaling = weight_OI, scaling
        out_NO = product(x_NI, weight_OI, bias_O)
        return add_product(out_NO, h_Nr, b_Or, scaling=scaling).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, h_Nr, a_rI, b_Or = ctx.saved_tensors
        grad_NO = grad.flatten(0, -2)
        grad_h_Nr = product(grad_NO, b_Or.T).mul_(ctx.scaling)
        grad_b_Or = (product(h_Nr.T, grad_NO.T) * ctx.scaling).T.contiguous()
        grad_a_rI = product(grad_h_Nr.T, x_NI.T)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_NI = add_product(product(grad_NO, ctx.weight.T), grad_h_Nr, a_rI.T)
            grad_x = grad_NI.view(*grad.shape[:-1], -1)
        return grad_x, None, None, grad_a_rI, grad_b_Or, None
