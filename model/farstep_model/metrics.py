"""How metrics of parts become those of the whole: the name says it, as `what:reduction`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

_WEIGHT = "tokens:sum"
_REDUCTIONS: Mapping[str, Callable[[Iterable[float]], float]] = {"sum": sum, "min": min, "max": max}


def combine_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all parts together; means are weighted by each part's `tokens:sum`.

    A part without tokens, or without the metric, has no say in a mean, a minimum or a maximum.

    Raises:
        ValueError: a name without one of the reductions sum, mean, min, max.
    """
    return {name: _combine(name, parts) for name in dict.fromkeys(name for part in parts for name in part)}


def _combine(name: str, parts: Sequence[Mapping[str, float]]) -> float:
    reduction = name.rpartition(":")[2]
    having = [part for part in parts if name in part]
    if reduction in _REDUCTIONS:
        return float(_REDUCTIONS[reduction](part[name] for part in having))
    if reduction != "mean":
        raise ValueError(f"metric {name!r} does not end in :sum, :mean, :min or :max")
    weight = sum(part[_WEIGHT] for part in having)
    return float(sum(part[name] * part[_WEIGHT] for part in having) / weight) if weight else 0.0
