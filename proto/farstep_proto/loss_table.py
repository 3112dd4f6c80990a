"""What each named loss takes: its inputs, its settings and their defaults.

The client reads it to refuse a wrong datum where it was written, the worker to refuse it at the door,
and `farstep_model.losses` holds the formulas. Adding a loss starts here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

INT_INPUTS = frozenset({"target_tokens"})
IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class LossSpec:
    """Inputs are as long as the model input: [T]; `target_tokens` and `weights` may be [T, K] where `allows_topk`."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    allows_topk: bool = False


_POLICY_INPUTS = ("target_tokens", "logprobs", "advantages")


def _policy(**defaults: float) -> LossSpec:
    return LossSpec(_POLICY_INPUTS, optional=("weights",), defaults=MappingProxyType(defaults))


LOSS_TABLE: Mapping[str, LossSpec] = MappingProxyType(
    {
        "cross_entropy": LossSpec(("target_tokens",), optional=("weights",), allows_topk=True),
        "importance_sampling": _policy(),
        "ppo": _policy(clip_low_threshold=0.8, clip_high_threshold=1.2),
        "cispo": _policy(clip_low_threshold=0.0, clip_high_threshold=4.0),
        "dro": _policy(beta=0.05),
        "dppo": _policy(divergence_threshold=0.15),
    }
)
