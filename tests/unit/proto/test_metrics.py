"""Combining metrics of parts."""

import numpy as np
import pytest

from farstep_proto.metrics import combine_metrics


def test_each_name_says_its_reduction() -> None:
    parts = [
        {"loss:sum": 3.0, "tokens:sum": 1.0, "ratio:mean": 2.0, "ratio:max": 5.0, "ratio:min": 1.0},
        {"loss:sum": 1.0, "tokens:sum": 3.0, "ratio:mean": 1.0, "ratio:max": 7.0, "ratio:min": 2.0},
    ]
    assert combine_metrics(parts) == {
        "loss:sum": 4.0,
        "tokens:sum": 4.0,
        "ratio:mean": 1.25,
        "ratio:max": 7.0,
        "ratio:min": 1.0,
    }


def test_a_part_without_tokens_has_no_say() -> None:
    parts = [{"loss:sum": 0.0, "tokens:sum": 0.0}, {"loss:sum": 1.0, "tokens:sum": 2.0, "ratio:mean": 0.5}]
    assert combine_metrics(parts)["ratio:mean"] == 0.5


def test_nothing_combines_to_nothing() -> None:
    assert combine_metrics([]) == {}


def test_variances_and_what_they_explain_are_those_of_all_parts_together() -> None:
    rng = np.random.default_rng(0)
    returns, values = rng.normal(3, 2, 20), rng.normal(2, 1, 20)

    def told(part: slice) -> dict[str, float]:
        error = returns[part] - values[part]
        named = {"return": returns[part], "value_error": error}
        moments = {f"{key}:{what.__name__}": what(array) for key, array in named.items() for what in (np.mean, np.var)}
        return {**moments, "tokens:sum": float(len(error))}

    whole = combine_metrics([told(slice(None))])
    assert whole["value:explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns))
    first = combine_metrics([told(slice(0, 1)), told(slice(1, 6))])
    empty = {"loss:sum": 0.0, "tokens:sum": 0.0}
    assert combine_metrics([first, told(slice(6, 20)), empty]) == pytest.approx({**whole, "loss:sum": 0.0})


def test_without_variance_nothing_is_explained() -> None:
    part = {"tokens:sum": 2.0, "return:mean": 1.0, "return:var": 0.0, "value_error:mean": 0.5, "value_error:var": 0.1}
    assert "value:explained_variance" not in combine_metrics([part, part])


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="'loss:median'"):
        combine_metrics([{"loss:median": 1.0, "tokens:sum": 1.0}])
