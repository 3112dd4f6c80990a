"""DoRA: adapters that train how long each output's row of weights is, apart from where it points.

A row W + c·B·A of an adapted weight is brought to the length m, which is trained: the layer gives m / ‖W + c·B·A‖ times
what it gives without its bias. Weight-Decomposed Low-Rank Adaptation, Liu et al. 2024, arXiv:2402.09353, eq. 5 and 6;
the norm takes no gradient (their section 4.3), as in PEFT. The adapted weight itself is never made.

Shapes: I inputs of a layer, O outputs, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farstep_model.products import product


@torch.no_grad()
def row_norms(weight_OI: Tensor, a_rI: Tensor, b_Or: Tensor, *, scaling: float) -> Tensor:
    """‖W + scaling·B·A‖ of each row, [O] in fp32, from the products of the parts alone."""
    a_rI, b_Or = a_rI.to(weight_OI.dtype), b_Or.float() * scaling
    crossed_O = (product(weight_OI, a_rI).float() * b_Or).sum(1)
    a_rI = a_rI.float()
    added_O = ((b_Or @ (a_rI @ a_rI.T)) * b_Or).sum(1)
    norms_O: Tensor = torch.linalg.vector_norm(weight_OI, dim=1, dtype=torch.float32)
    return (norms_O**2 + 2 * crossed_O + added_O).clamp_min(0).sqrt()


def stretch(m_O: Tensor, norms_O: Tensor) -> Tensor:
    """By how much of itself a row is made longer, m / norm − 1, [O]; a row without length stays as it is."""
    return torch.where(norms_O > 0, m_O / norms_O.clamp_min(torch.finfo(torch.float32).tiny), 1.0) - 1


def stretched(out: Tensor, bias_O: Tensor | None, stretch_O: Tensor) -> Tensor:
    """A layer's output with its rows made longer, the bias left as it is; exactly `out` where the stretch is 0.

    `stretch_O` broadcasts against `out` […, O].
    """
    return out + (out if bias_O is None else out - bias_O) * stretch_O.to(out.dtype)
