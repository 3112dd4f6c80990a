"""Losses by pair: what a preference of one sequence over another costs.

Δ is by how much more the present model prefers the chosen sequence than the reference does:
Δ = Σ w·(p − ref) over the tokens of the chosen sequence, less the same over the rejected one's. It is a sum, as in both
papers; weights of 1 / length make it a difference of means.

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor
from torch.nn.functional import logsigmoid

PairFormula = Callable[[Tensor, Mapping[str, float]], Tensor]


def dpo(delta_P: Tensor, config: Mapping[str, float]) -> Tensor:
    """−(1 − s)·log σ(beta·Δ) − s·log σ(−beta·Δ), s being `label_smoothing`.

    Direct Preference Optimization, Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with s > 0 its conservative form, for
    labels that are wrong with probability s (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    scaled, smoothing = config["beta"] * delta_P, config["label_smoothing"]
    return -(1 - smoothing) * logsigmoid(scaled) - smoothing * logsigmoid(-scaled)


def ipo(delta_P: Tensor, config: Mapping[str, float]) -> Tensor:
    """(1 − s)·(Δ − 1/(2·beta))² + s·(Δ + 1/(2·beta))², s being `label_smoothing`.

    Identity Preference Optimization, Azar et al. 2023, arXiv:2310.12036, eq. 17, where beta is called τ; with s > 0 its
    expectation under labels that are wrong with probability s. Lengths are not divided out: Δ is the papers' sum.
    """
    target, smoothing = 0.5 / config["beta"], config["label_smoothing"]
    return (1 - smoothing) * (delta_P - target) ** 2 + smoothing * (delta_P + target) ** 2


PAIR_LOSSES: Mapping[str, PairFormula] = MappingProxyType({"dpo": dpo, "ipo": ipo})
