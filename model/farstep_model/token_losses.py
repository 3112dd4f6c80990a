"""Losses by token: what one target's log-probability costs, or one position's value, before weights.

In the formulas p is the present log-probability of the target, q the given `logprobs`, A the `advantages`, w the
`weights`, r = exp(p − q), and sg stops the gradient.

Shapes: N tokens, in any order and of any sequences; K candidates a token (cross-entropy only).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from farstep_proto.loss_table import BOUND_INPUTS

Bound = Tensor | float


@dataclass(frozen=True, slots=True, eq=False)
class PerToken:
    """Losses before weights, and where the trust region took the gradient away (None: the loss has none)."""

    loss: Tensor
    clipped: Tensor | None = None


def cross_entropy(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·p, for [N] or [N, K] targets."""
    return PerToken(-p)


def importance_sampling(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·r·A."""
    return PerToken(-ratio_of(p, inputs) * inputs["advantages"])


def ppo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·min(r·A, clip(r, low, high)·A): the clipped surrogate of Schulman et al. 2017, arXiv:1707.06347, eq. 7.

    The settings are the bounds themselves, 0.8 and 1.2, not their distance from 1.
    """
    return _clipped_surrogate(ratio_of(p, inputs), inputs, config)


def cispo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·sg(clip(r, low, high))·A·p: MiniMax-M1, arXiv:2506.13585, eq. 4. A clipped token keeps a gradient."""
    low, high = _bounds(inputs, config)
    ratio = ratio_of(p, inputs).detach()
    return PerToken(-_clip(ratio, low, high) * inputs["advantages"] * p, (ratio < low) | (ratio > high))


def dro(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·(p·A − ½·beta·(p − q)²): direct reward optimization by token, after Richemond et al. 2024, arXiv:2405.19107.

    The advantage stands where the paper has reward minus value.
    """
    return PerToken(-(p * inputs["advantages"] - 0.5 * config["beta"] * (p - inputs["logprobs"]) ** 2))


def dppo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·M·r·A: Divergence Proximal Policy Optimization, Qi et al. 2026, arXiv:2602.04879.

    The binary total-variation form, where a distribution is reduced to "the sampled token or another":
    D = |exp(p) − exp(q)|. M is 0 where D > divergence_threshold and the step would lead further away (A > 0 and r > 1,
    or A < 0 and r < 1), else 1. Published implementations choose thresholds of 0.15 to 0.2.
    """
    ratio, advantages, given = ratio_of(p, inputs), inputs["advantages"], inputs["logprobs"]
    divergence = (p.exp() - given.exp()).abs().detach()
    away = ((advantages > 0) & (p > given)) | ((advantages < 0) & (p < given))
    masked = away & (divergence > config["divergence_threshold"])
    return PerToken(torch.where(masked, 0.0, -ratio * advantages), masked)


def gspo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·min(s·A, clip(s, low, high)·A), with s = sg(S)·exp(p − sg(p)) and S = exp(mean(p − q)) of the sequence.

    The token form of Group Sequence Policy Optimization (GSPO-token), Zheng et al. 2025, arXiv:2507.18071: every token
    of a sequence has the sequence's ratio as its value, and a gradient of its own. `inputs["sequence_log_ratio"]` is
    log S at each token.
    """
    ratio = inputs["sequence_log_ratio"].exp() * (p - p.detach()).exp()
    return _clipped_surrogate(ratio, inputs, config)


def stable_reinforce(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """−w·sg(min(r, 1)^alpha)·A·p: REINFORCE with truncated importance weights.

    How Tinker computes the loss of this name is not known to us; docs/losses.md says what is known, and why this. The
    weights are those of Ionides 2008, "Truncated importance sampling", cut at 1 as in V-trace (Espeholt et al. 2018,
    arXiv:1802.01561): a token that has become likelier counts as if it were on-policy, one that has become unlikely
    counts less. alpha 0 is plain REINFORCE. `kl_coef` is of the divergence from the sampling policy q. How many
    are cut is no metric: on-policy, where r is 1 but for rounding, it would say nothing.
    """
    log_ratio = (p - inputs["logprobs"]).detach()
    weight = (config["alpha"] * log_ratio.clamp_max(0.0)).exp()
    return PerToken(-weight * inputs["advantages"] * p)


def value(v: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    """w·coef·½·max((v − R)², (clip(v, v_old − c, v_old + c) − R)²), v being the present value, v_old the given
    `values`, R the `returns` and c the setting `clip`.

    The clipped value loss of PPO2 (OpenAI Baselines), which Schulman et al. 2017 do not have: Huang et al. 2022, "The
    37 Implementation Details of Proximal Policy Optimization", detail 9. `coef` is detail 10's weight beside a policy
    loss. Where the clipped error is the larger one, the token counts as clipped and has no gradient.
    """
    old, returns, clip = inputs["values"], inputs["returns"], config["clip"]
    # A clamp of v itself: inside the bounds it is v to the bit, so that rounding never looks like clipping.
    clipped_v = v.clamp(old - clip, old + clip)
    error, clipped_error = (v - returns) ** 2, (clipped_v - returns) ** 2
    loss = config["coef"] * 0.5 * torch.maximum(error, clipped_error)
    return PerToken(loss, clipped_error > error)


def kl_to_reference(p: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(ref − p) − (ref − p) − 1: the estimate k3 of KL(present ‖ reference) of Schulman 2020, "Approximating KL
    divergence", as GRPO adds it to its loss (DeepSeekMath, arXiv:2402.03300, eq. 4). The gradient goes through p."""
    log_ratio = ref_logprobs - p
    return log_ratio.expm1() - log_ratio


def ratio_of(p: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return (p - inputs["logprobs"]).exp()


def _clipped_surrogate(ratio: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> PerToken:
    advantages = inputs["advantages"]
    low, high = _bounds(inputs, config)
    loss = -torch.minimum(ratio * advantages, _clip(ratio, low, high) * advantages)
    return PerToken(loss, ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low)))


def _bounds(inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> tuple[Bound, Bound]:
    """Each as the tokens have it where any of them has one of its own (NaN where one has none), else as it was set."""
    low, high = (
        torch.where(inputs[key].isnan(), config[key], inputs[key]) if key in inputs else config[key]
        for key in BOUND_INPUTS
    )
    return low, high


def _clip(ratio: Tensor, low: Bound, high: Bound) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return ratio.clamp(torch.as_tensor(low).to(ratio), torch.as_tensor(high).to(ratio))
    return ratio.clamp(low, high)
