"""Numbers as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep.trainers.config.numbers import exact_number, real, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1k", 1000),
        ("1.5k", 1500),
        ("1Ki", 1024),
        ("2M", 2_000_000),
        ("1Gi", 2**30),
        ("3B", 3_000_000_000),
        ("2^20", 2**20),
        ("10**3", 1000),
        ("1_000", 1000),
        (" 7 ", 7),
        ("-3", -3),
        ("1e3", 1000),
        ("400%", 4),
    ],
)
def test_counts(text: str, value: int) -> None:
    assert whole(text) == value
    assert real(text) == float(value)


@pytest.mark.parametrize(("text", "value"), [("1e-6", 1e-6), ("50%", 0.5), (".5", 0.5), ("2.", 2.0), ("1E-4", 1e-4)])
def test_measures(text: str, value: float) -> None:
    assert real(text) == value


@pytest.mark.parametrize(
    "text", ["", "k", "1kk", "one", "1 2", "1e", "2^", "nan", "inf", "0x10", "1e999", "1e-999", "."]
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no number|suffix|range"):
        exact_number(text)


@pytest.mark.parametrize("value", ["1.5", 1.5, "50%", True, "1e-3"])
def test_a_count_is_whole(value: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        whole(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True])
def test_a_measure_is_finite(value: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        real(value)


@settings(deadline=None, derandomize=True)
@given(st.integers(-(10**12), 10**12), st.sampled_from(["", "k", "Ki", "M", "Mi", "G", "Gi", "T", "Ti"]))
def test_a_suffix_multiplies_exactly(number: int, suffix: str) -> None:
    factor = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    factor |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGT", 1)}
    assert exact_number(f"{number}{suffix}") == number * factor[suffix]


@settings(deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-200, max_value=1e200))
def test_what_python_writes_is_read_back_exactly(value: float) -> None:
    assert real(repr(value)) == value
    assert exact_number(f"{value!r}%") == Fraction(repr(value)) / 100
