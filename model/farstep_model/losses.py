"""The named losses, in plain torch: what a token's log-probability costs.

Each is a sum over tokens, so that accumulating over calls is exact. What inputs and settings there are is said by
`farstep_proto.loss_table`; this module holds the formulas and nothing else: no model, no optimizer.

In the formulas p is the present log-probability of the target, q the given `logprobs`, A the `advantages`, w the
`weights` (1 where absent), r = exp(p − q), and sg stops the gradient.

Shapes: N tokens, in any order and of any sequences; K candidates a token (cross-entropy only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import IGNORE_INDEX
from farstep_proto.validation import check_loss


@dataclass(frozen=True, slots=True, eq=False)
class LossResult:
    """What came of one loss.

    `loss_sum` is a scalar in fp32 with its graph. `metrics` are detached scalars named `what:reduction`, to be joined
    by `metrics.combine_metrics`. `num_active` counts tokens whose target is not ignored and whose weight is not 0.
    """

    loss_sum: Tensor
    metrics: dict[str, Tensor]
    num_active: int


@dataclass(frozen=True, slots=True, eq=False)
class _PerToken:
    """Losses before weights, and where the trust region took the gradient away (None: the loss has none)."""

    loss: Tensor
    clipped: Tensor | None = None


_Formula = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, float]], _PerToken]


def cross_entropy(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> _PerToken:
    """−w·p, for [N] or [N, K] targets."""
    return _PerToken(-p)


def importance_sampling(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> _PerToken:
    """−w·r·A."""
    return _PerToken(-_ratio(p, inputs) * inputs["advantages"])


def ppo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> _PerToken:
    """−w·min(r·A, clip(r, low, high)·A): the clipped surrogate of Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    The settings are the bounds themselves, 0.8 and 1.2, not their distance from 1.
    """
    low, high = config["clip_low_threshold"], config["clip_high_threshold"]
    ratio, advantages = _ratio(p, inputs), inputs["advantages"]
    loss = -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    return _PerToken(loss, ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low)))


def cispo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> _PerToken:
    """−w·sg(clip(r, low, high))·A·p: MiniMax-M1, arXiv:2506.13585, eq. 4. A clipped token keeps a gradient."""
    low, high = config["clip_low_threshold"], config["clip_high_threshold"]
    ratio = _ratio(p, inputs).detach()
    return _PerToken(-ratio.clamp(low, high) * inputs["advantages"] * p, (ratio < low) | (ratio > high))


def dro(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> _PerToken:
    """−w·(p·A − ½·beta·(p − q)²): direct reward optimization by token, after Richemond et al. 2024, arXiv:2405.19107.

    The advantage stands where the paper has reward minus value.
    """
    return _PerToken(-(p * inputs["advantages"] - 0.5 * config["beta"] * (p - inputs["logprobs"]) ** 2))


def dppo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> _PerToken:
    """−w·M·r·A: Divergence Proximal Policy Optimization, Qi et al. 2026, arXiv:2602.04879, eq. 11 and 12.

    The binary total-variation form, where a distribution is reduced to "the sampled token or another":
    D = |exp(p) − exp(q)|. M is 0 where D > divergence_threshold and the step would lead further away (A > 0 and r > 1,
    or A < 0 and r < 1), else 1. The default of 0.15 is that of the authors' own experiments.
    """
    ratio, advantages, given = _ratio(p, inputs), inputs["advantages"], inputs["logprobs"]
    divergence = (p.exp() - given.exp()).abs().detach()
    away = ((advantages > 0) & (p > given)) | ((advantages < 0) & (p < given))
    masked = away & (divergence > config["divergence_threshold"])
    return _PerToken(torch.where(masked, 0.0, -ratio * advantages), masked)


LOSSES: Mapping[str, _Formula] = MappingProxyType(
    {
        "cross_entropy": cross_entropy,
        "importance_sampling": importance_sampling,
        "ppo": ppo,
        "cispo": cispo,
        "dro": dro,
        "dppo": dppo,
    }
)


def compute_loss(
    name: str,
    config: Mapping[str, float],
    *,
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    entropy_N: Tensor | None = None,
) -> LossResult:
    """The named loss of some tokens: of one datum, of a micro-batch, or of its active tokens alone.

    Args:
        config: settings; those left out have the defaults of the loss table.
        logprobs: [N] or [N, K] in fp32, of `target_tokens`; anything at all where the target is ignored.
        inputs: the datum's loss inputs, each of the shape of `logprobs`.
        entropy_N: of the distributions [N]; becomes a metric.

    Raises:
        InvalidInput: an unknown loss or setting, a missing input, or one of another shape.
    """
    spec = check_loss(name, config)
    for key in (*spec.required, *(key for key in spec.optional if key in inputs)):
        if key not in inputs:
            raise InvalidInput(f"missing {key!r}", field=f"loss_fn_inputs.{key}")
        if inputs[key].shape != logprobs.shape:
            raise InvalidInput(
                f"shape {list(inputs[key].shape)}, expected {list(logprobs.shape)}", field=f"loss_fn_inputs.{key}"
            )
    weights = inputs.get("weights", torch.ones_like(logprobs))
    active = (inputs["target_tokens"] != IGNORE_INDEX) & (weights != 0)
    # Neutral values first: what stands at an ignored place must not reach the sum, nor the gradient as 0 · inf.
    p = torch.where(active, logprobs, 0.0)
    policy_keys = [key for key in spec.required if key != "target_tokens"]
    neutral = {key: torch.where(active, inputs[key], 0.0) for key in policy_keys}
    per_token = LOSSES[name](p, neutral, {**spec.defaults, **config})
    loss_sum = (torch.where(active, weights, 0.0) * per_token.loss).sum()
    active_N = active if active.dim() == 1 else active.any(-1)
    num_active = int(active_N.sum())
    metrics = {"loss:sum": loss_sum.detach(), "tokens:sum": active_N.sum().to(loss_sum.dtype)}
    if num_active:
        metrics |= _metrics(p, neutral, per_token.clipped, entropy_N, active_N)
    return LossResult(loss_sum, metrics, num_active)


def _ratio(p: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return (p - inputs["logprobs"]).exp()


@torch.no_grad()
def _metrics(
    p: Tensor, inputs: Mapping[str, Tensor], clipped: Tensor | None, entropy_N: Tensor | None, active_N: Tensor
) -> dict[str, Tensor]:
    """Over active tokens. The estimates of KL(q ‖ p) are k1 and k3 of Schulman 2020, "Approximating KL divergence"."""
    metrics = {}
    if "logprobs" in inputs:
        log_ratio = (p - inputs["logprobs"])[active_N]
        ratio = log_ratio.exp()
        metrics = {
            "ratio:mean": ratio.mean(),
            "ratio:max": ratio.max(),
            "kl_k1:mean": -log_ratio.mean(),
            "kl_k3:mean": (log_ratio.expm1() - log_ratio).mean(),
        }
    if clipped is not None:
        metrics["clip_fraction:mean"] = clipped[active_N].to(p.dtype).mean()
    if entropy_N is not None:
        metrics["entropy:mean"] = entropy_N[active_N].mean()
    return metrics
