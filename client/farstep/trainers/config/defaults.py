"""What a trainer's settings are where the user says nothing: of LoRA, where they differ from the model's own.

A trainer that is registered elsewhere may have a `config_defaults` of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SUPERVISED: Mapping[str, Any] = {
    "batch_size": 8,
    "optimizer": {"lr": 2e-4},
    "scheduler": {"name": "linear"},
}
_PREFERENCE: Mapping[str, Any] = {
    "batch_size": 8,
    "optimizer": {"lr": 1e-5},
    "scheduler": {"name": "linear"},
}
_REINFORCEMENT: Mapping[str, Any] = {"batch_size": 16, "optimizer": {"lr": 4e-5}}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "sft": _SUPERVISED,
    "causal": _SUPERVISED,
    "dpo": {**_PREFERENCE, "preference": {"loss": "sigmoid"}},
    "ipo": {**_PREFERENCE, "preference": {"loss": "ipo"}},
    "grpo": _REINFORCEMENT,
    "gspo": {**_REINFORCEMENT, "rl": {"clip_low": 3e-4, "clip_high": 3e-4, "loss_aggregation": "sequence"}},
    "ppo": {**_REINFORCEMENT, "optimizer": {"lr": 1e-5}},
    "operator": {"batch_size": 8},
}

# Sections that only these trainers read: to set one for another trainer of ours is a mistake.
READERS: Mapping[str, frozenset[str]] = {
    "preference": frozenset({"dpo", "ipo"}),
    "rl": frozenset({"grpo", "gspo", "ppo"}),
}


def with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and what it leaves open from `defaults`, section by section."""
    merged = dict(values)
    for key, default in defaults.items():
        given = merged.get(key)
        if key not in merged:
            merged[key] = dict(default) if isinstance(default, Mapping) else default
        elif isinstance(default, Mapping) and isinstance(given, Mapping):
            merged[key] = with_defaults(given, default)
    return merged
