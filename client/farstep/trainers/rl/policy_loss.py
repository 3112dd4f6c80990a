"""`PolicyLoss`: which loss the settings of an algorithm come to, the worker's named one or the same formula here.

A named loss is one pass. What the worker does not have (dual clipping, other estimates of the divergence from the
reference than k3, its correction) is computed in torch on this machine, from log-probabilities that come here first:
two passes.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from farstep.trainers.own_loss import import_torch
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    import torch

    from farstep.trainers.config.algorithms import RLConfig

Level = Literal["token", "sequence"]
KlType = Literal["k1", "abs", "k2", "k3"]

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """
    Args:
        level: what a ratio is of: each token (PPO, GRPO), or the geometric mean of a sequence's (GSPO, token form).
        low, high: bounds of the ratio.
        dual_clip: c of dual-clip PPO (arXiv:1912.09729): where the advantage is negative a token costs at most −c·A.
        is_kl_corrected: the divergence from the reference is multiplied by the token's ratio, so that its gradient is
            unbiased (DeepSeek-V3.2, arXiv:2512.02556).
        is_unit: every ratio has the value 1, and the loss the gradient of REINFORCE.
    """

    level: Level
    low: float
    high: float
    dual_clip: float | None = None
    kl_coef: float = 0.0
    kl_type: KlType = "k3"
    is_unit: bool = False
    is_kl_corrected: bool = False

    @classmethod
    def of(cls, rl: RLConfig, level: Level) -> PolicyLoss:
        return cls(
            level,
            1.0 - rl.clip_low,
            1.0 + rl.clip_high,
            rl.dual_clip,
            rl.kl_coef,
            rl.kl_type,
            is_unit=rl.ratio == "unit",
            is_kl_corrected=rl.kl_corrected,
        )

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def is_named(self) -> bool:
        """Whether the worker has it. Dual clipping does nothing where ratios are 1."""
        has_named_kl = self.kl_type == "k3" and not self.is_kl_corrected
        return (self.dual_clip is None or self.is_unit) and (not self.kl_coef or has_named_kl)

    @property
    def name(self) -> str:
        """Of the worker's. A `cispo` whose ratio is clipped to 1 is REINFORCE: −Σ w·A·p."""
        if self.is_unit:
            return "cispo"
        return "ppo" if self.level == "token" else "gspo"

    @property
    def settings(self) -> Mapping[str, float]:
        """Of the worker's."""
        low, high = (1.0, 1.0) if self.is_unit else (self.low, self.high)
        kl = {"kl_coef": self.kl_coef} if self.kl_coef else {}
        return {"clip_low_threshold": low, "clip_high_threshold": high, **kl}

    @property
    def inputs(self) -> Sequence[str]:
        """Per-token fields of rows that it takes."""
        return ("logprobs", "advantages", *(("ref_logprobs",) if self.needs_reference else ()))

    def __call__(
        self, rows: Sequence[TrainSequence], logprobs: Sequence[torch.Tensor], normalizer: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of rows by their present log-probabilities, [T] each, and its metrics: means over chosen tokens."""
        torch = import_torch()
        parts = [self._row(torch, row, p) for row, p in zip(rows, logprobs, strict=True)]
        total = torch.stack([loss for loss, _ in parts]).sum() / normalizer
        names = list(parts[0][1]) if parts else []
        joined = {name: torch.cat([values[name] for _, values in parts]) for name in names}
        return total, {name: float(values.mean()) for name, values in joined.items() if values.numel()}

    def _row(self, torch: Any, row: TrainSequence, p_all: Any) -> tuple[Any, dict[str, Any]]:
        weights = torch.tensor(row.loss_mask, dtype=p_all.dtype)
        weights[0] = 0.0
        chosen = weights != 0
        p, weights = p_all[chosen], weights[chosen]
        old, advantages, *reference = (
            torch.tensor(getattr(row, name), dtype=p_all.dtype)[chosen] for name in self.inputs
        )
        log_ratio = (p - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio = self._ratio(p, log_ratio)
        bounded = ratio if self.is_unit else ratio.clamp(self.low, self.high)
        cost = torch.maximum(-ratio * advantages, -bounded * advantages)
        seen = ratio.detach()
        metrics = {"ratio": log_ratio.detach().exp() if self.is_unit else seen}
        if not self.is_unit:
            over, under = (advantages > 0) & (seen > self.high), (advantages < 0) & (seen < self.low)
            metrics["clip_fraction"] = (over | under).to(p.dtype)
        if self.dual_clip is not None:
            limit = -self.dual_clip * advantages
            metrics["clip_fraction_lower"] = ((advantages < 0) & (cost > limit)).to(p.dtype)
            cost = torch.where(advantages < 0, torch.minimum(cost, limit), cost)
        metrics["kl_k3"] = (log_ratio.expm1() - log_ratio).detach()
        if reference:
            divergence = kl_estimate(p, reference[0], self.kl_type)
            metrics["kl_ref"] = divergence.detach()
            cost = cost + self.kl_coef * self._corrected(divergence, p, log_ratio)
        return (weights * cost).sum(), metrics

    def _corrected(self, divergence: Any, p: Any, log_ratio: Any) -> Any:
        if not self.is_kl_corrected:
            return divergence
        return divergence * ((p - p.detach()).exp() if self.is_unit else log_ratio.exp())

    def _ratio(self, p: Any, log_ratio: Any) -> Any:
        """Its gradient is that of p, whatever its value."""
        if self.is_unit:
            return (p - p.detach()).exp()
        if self.level == "sequence":
            return log_ratio.detach().mean().exp() * (p - p.detach()).exp()
        return log_ratio.exp()


def kl_estimate(p: torch.Tensor, reference: torch.Tensor, kind: KlType) -> torch.Tensor:
    """Of KL(present ‖ reference) by the tokens that were chosen: d = p − ref; k1: d, abs: |d|, k2: d²/2,
    k3: e^(−d) + d − 1 (Schulman 2020, "Approximating KL divergence")."""
    difference = (p - reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    match kind:
        case "k1":
            return difference
        case "abs":
            return difference.abs()
        case "k2":
            return difference.square() / 2
        case "k3":
            return (-difference).expm1() + difference
