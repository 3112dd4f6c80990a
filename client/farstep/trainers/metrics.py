"""What a step, an evaluation and a whole run come to, in numbers with plain names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from farstep_proto.metrics import combine_metrics


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """Of a run or an evaluation.

    Args:
        loss: the last step's, or the evaluation's mean; not a number where there was nothing.
        accuracy: None where nobody can say.
        steps: optimizer steps, or batches of an evaluation.
        extra: every metric that was last seen, by name.
        stopped_because: why the run ended where it did.
    """

    loss: float = math.nan
    accuracy: float | None = None
    steps: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)
    stopped_because: str = ""


def joined(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several passes together, under the names that people read: `clip_fraction`, not `clip_fraction:mean`.

    `loss` is the sum that was differentiated, over all parts: each was divided by the normalizer of the whole.
    """
    together = combine_metrics(parts)
    loss = together.pop("loss:sum", math.nan)
    for counted in ("tokens:sum", "pairs:sum"):
        together.pop(counted, None)
    named = {name.removesuffix(":mean").replace(":", "_"): value for name, value in sorted(together.items())}
    return {"loss": loss, **named}


def prefixed(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """`loss` as `train/loss`; what has a prefix keeps its own."""
    return {name if "/" in name else f"{prefix}/{name}": value for name, value in metrics.items()}
