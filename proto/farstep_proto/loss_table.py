"""What each named loss takes: its inputs, its settings and their defaults.

The client reads it to refuse a wrong datum where it was written, the worker to refuse it at the door,
and `farstep_model.losses` holds the formulas. Adding a loss starts here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

INT_INPUTS = frozenset({"target_tokens"})
MASK_INPUTS = frozenset({"sequence_ratio_mask"})
# Settings that may be given by the token as well; a token without one has the setting.
BOUND_INPUTS = ("clip_low_threshold", "clip_high_threshold")
IGNORE_INDEX = -100

# What a loss looks at together: a token, the tokens of one datum, or two data that follow each other.
Grouping = Literal["token", "sequence", "pair"]

# What of the model a loss is of, and what a pass gives back under this name.
Output = Literal["logprobs", "values"]


@dataclass(frozen=True, slots=True)
class LossSpec:
    """Inputs are as long as the model input: [T]; `target_tokens` and `weights` may be [T, K] where `allows_topk`.

    Data of a `pair` loss alternate: chosen, rejected, chosen, rejected, …. Where `forward_needs` is given, a pass
    without a gradient requires no more than that.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    allows_topk: bool = False
    grouping: Grouping = "token"
    output: Output = "logprobs"
    forward_needs: tuple[str, ...] | None = None

    @property
    def num_data(self) -> int:
        """How many data belong together, which no cut may part."""
        return 2 if self.grouping == "pair" else 1


_POLICY_INPUTS = ("target_tokens", "logprobs", "advantages")
# Of every loss: the sum is divided by it.
_NORMALIZER = {"normalizer": 1.0}


def _policy(
    *, optional: tuple[str, ...] = ("weights", "ref_logprobs"), grouping: Grouping = "token", **defaults: float
) -> LossSpec:
    settings = MappingProxyType({**defaults, "kl_coef": 0.0, **_NORMALIZER})
    bounds = tuple(key for key in BOUND_INPUTS if key in defaults)
    return LossSpec(_POLICY_INPUTS, (*optional, *bounds), settings, grouping=grouping)


def _preference() -> LossSpec:
    settings = MappingProxyType({"beta": 0.1, "label_smoothing": 0.0, **_NORMALIZER})
    return LossSpec(("target_tokens", "ref_logprobs"), ("weights",), settings, grouping="pair")


# The name of losses that come with their calls (`farstep_proto.custom_loss`): what they need, they say themselves.
CUSTOM = "custom"
CUSTOM_SPEC = LossSpec(("target_tokens",), allows_topk=True, grouping="sequence")

LOSS_TABLE: Mapping[str, LossSpec] = MappingProxyType(
    {
        "cross_entropy": LossSpec(
            ("target_tokens",), optional=("weights",), defaults=MappingProxyType(_NORMALIZER), allows_topk=True
        ),
        "importance_sampling": _policy(),
        "ppo": _policy(clip_low_threshold=0.8, clip_high_threshold=1.2),
        "cispo": _policy(clip_low_threshold=0.0, clip_high_threshold=4.0),
        "dro": _policy(beta=0.05),
        "dppo": _policy(divergence_threshold=0.15),
        "gspo": _policy(
            optional=("weights", "ref_logprobs", "sequence_ratio_mask"),
            grouping="sequence",
            clip_low_threshold=1 - 3e-4,
            clip_high_threshold=1 + 3e-4,
        ),
        "stable_reinforce": _policy(optional=("weights",), alpha=1.0),
        "dpo": _preference(),
        "ipo": _preference(),
        "value": LossSpec(
            ("returns", "values"),
            optional=("weights", "target_tokens"),
            defaults=MappingProxyType({"clip": 0.5, "coef": 0.5, **_NORMALIZER}),
            output="values",
            forward_needs=(),
        ),
    }
)
