"""What a rollout and its rows look like in metrics and events. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from farstep.rollout import Rollout

SHOWN, SHOWN_ROWS, SHOWN_TOKENS = 3, 2, 256


def experience_metrics(rows: Sequence[TrainSequence]) -> dict[str, float]:
    """Of advantages, returns and values, over trained tokens."""
    found: dict[str, float] = {}
    masks = [np.asarray(row.loss_mask)[1:] != 0 for row in rows]
    for field, name in (("advantages", "advantage"), ("returns", "return"), ("values", "value")):
        given = [getattr(row, field) for row in rows]
        if not rows or any(each is None for each in given):
            continue
        chosen = np.concatenate([np.asarray(each)[1:][mask] for each, mask in zip(given, masks, strict=True)])
        if chosen.size:
            found |= {f"{name}_mean": float(chosen.mean()), f"{name}_std": float(chosen.std())}
    if found:
        found["zero_advantage_fraction"] = sum(not any(row.advantages or ()) for row in rows) / len(rows)
    return found


def described(rollout: Rollout, rows: Sequence[TrainSequence], tokenizer: Any) -> dict[str, Any]:
    """An event's data: the funnel, the histogram of rewards, a few samples and their tokens with all that is known."""
    stats = rollout.stats
    edges, counts = stats.reward_histogram()
    return {
        "funnel": {name: getattr(stats.funnel, name) for name in ("asked", "sampled", "parsed", "scored", "trained")},
        "dropped": dict(stats.dropped),
        "failed": dict(stats.failed),
        "reward_histogram": {"edges": edges, "counts": counts},
        "samples": rollout.shown(SHOWN),
        "rows": [_row(row, tokenizer) for row in rows[:SHOWN_ROWS]],
        **{name.removeprefix("rollout/"): value for name, value in rollout.metrics().items() if "reward_" in name},
    }


def _row(row: TrainSequence, tokenizer: Any) -> dict[str, Any]:
    end = SHOWN_TOKENS
    return {
        "reward": row.reward,
        "tokens": [tokenizer.decode([token]) for token in row.tokens[:end]],
        "kinds": list(row.metadata.get("kinds", ()))[:end],
        "loss_mask": [round(weight, 6) for weight in row.loss_mask[:end]],
        "logprobs": _rounded(row.logprobs, end),
        "advantages": _rounded(row.advantages, end),
    }


def _rounded(values: Sequence[float] | None, end: int) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values[:end]]
