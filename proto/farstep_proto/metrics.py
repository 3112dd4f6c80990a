"""How metrics of parts become those of the whole: the name says it, as `what:reduction`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

# What a mean is over: data where a loss counts them, pairs where there are any, else tokens.
_WEIGHTS = ("data:sum", "pairs:sum", "tokens:sum")
_EXPLAINED_VARIANCE = "value:explained_variance"
_REDUCTIONS: Mapping[str, Callable[[Iterable[float]], float]] = {"sum": sum, "min": min, "max": max}


def combine_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all parts together; means are weighted by each part's `data:sum`, `pairs:sum` or else `tokens:sum`.

    A part without tokens, or without the metric, has no say in a mean, a minimum or a maximum. The variance of `what`
    is joined from variances and means (`what:mean`) of the parts. `value:explained_variance`, 1 − var(R − v) / var(R)
    for returns R and values v, is always that of the whole; without variance in the returns there is none.

    Raises:
        ValueError: a name without one of the reductions sum, mean, min, max, var.
    """
    names = dict.fromkeys(name for part in parts for name in part if name != _EXPLAINED_VARIANCE)
    combined = {name: _combine(name, parts) for name in names}
    if combined.get("return:var", 0.0) > 0:
        combined[_EXPLAINED_VARIANCE] = 1 - combined["value_error:var"] / combined["return:var"]
    return combined


def num_units(metrics: Mapping[str, float]) -> float:
    """Over how much a loss was summed: data, pairs, or active tokens."""
    return next(metrics[name] for name in _WEIGHTS if name in metrics)


def mean_loss(metrics: Mapping[str, float], *, normalizer: float) -> float:
    """The loss by token or by pair, for people to read: whatever the sum was divided by for its gradient."""
    return metrics["loss:sum"] * normalizer / max(1.0, num_units(metrics))


def _combine(name: str, parts: Sequence[Mapping[str, float]]) -> float:
    reduction = name.rpartition(":")[2]
    having = [part for part in parts if name in part]
    if reduction in _REDUCTIONS:
        return float(_REDUCTIONS[reduction](part[name] for part in having))
    values = [part[name] for part in having]
    if reduction == "mean":
        return _mean(values, having)
    if reduction == "var":
        means = [part[f"{name.removesuffix(':var')}:mean"] for part in having]
        mean = _mean(means, having)
        return _mean([value + (m - mean) ** 2 for value, m in zip(values, means, strict=True)], having)
    raise ValueError(f"metric {name!r} does not end in :sum, :mean, :min, :max or :var")


def _mean(values: Sequence[float], parts: Sequence[Mapping[str, float]]) -> float:
    weights = [num_units(part) for part in parts]
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else 0.0
