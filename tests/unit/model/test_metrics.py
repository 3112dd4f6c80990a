"""Combining metrics of parts."""

import pytest

from farstep_model.metrics import combine_metrics


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


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="'loss:median'"):
        combine_metrics([{"loss:median": 1.0, "tokens:sum": 1.0}])
