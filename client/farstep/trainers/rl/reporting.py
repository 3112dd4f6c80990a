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
    if found and all(row.advantages is not None for row in rows):
        found["effective_tokens"] = float(
            sum(np.count_nonzero(np.asarray(row.advantages)[1:] * mask) for row, mask in zip(rows, masks, strict=True))
        )
    if found:
        found["zero_advantage_fraction"] = sum(not any(row.advantages or ()) for row in rows) / len(rows)
    return found


def described(
    rollout: Rollout, rows: Sequence[TrainSequence], tokenizer: Any, *, step: int, num_rows: int
) -> dict[str, Any]:
    """An event's data: the funnel, the histogram of rewards, a few samples and their tokens with all that is known.

    Args:
        step: optimizer steps that were made before.
        num_rows: so many rows, whole; 0: a piece of the first two, and only before steps 1, 2, 4, 8 …, so that the
            events of a long run stay small.
    """
    stats = rollout.stats
    pieces = SHOWN_ROWS if step & (step + 1) == 0 else 0
    wanted, end = (num_rows, None) if num_rows else (pieces, SHOWN_TOKENS)
    given = {"rows": [_row(row, tokenizer, end) for row in rows[:wanted]]} if wanted else {}
    edges, counts = stats.reward_histogram()
    return {
        "funnel": {name: getattr(stats.funnel, name) for name in ("asked", "sampled", "parsed", "scored", "trained")},
        "dropped": dict(stats.dropped),
        "failed": dict(stats.failed),
        "reward_histogram": {"edges": edges, "counts": counts},
        "samples": rollout.shown(SHOWN),
        **given,
        **{name.removeprefix("rollout/"): value for name, value in stats.metrics().items() if "reward_" in name},
    }


def _row(row: TrainSequence, tokenizer: Any, end: int | None) -> dict[str, Any]:
    return {
        "reward": row.reward,
        "tokens": [tokenizer.decode([token]) for token in row.tokens[:end]],
        "kinds": list(row.metadata.get("kinds", ()))[:end],
        "loss_mask": [round(weight, 6) for weight in row.loss_mask[:end]],
        "logprobs": _rounded(row.logprobs, end),
        "advantages": _rounded(row.advantages, end),
    }


def _rounded(values: Sequence[float] | None, end: int | None) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values[:end]]
