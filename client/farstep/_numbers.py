"""Whether a setting is a number, finite, and in its range: refused by name where it is made."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from farstep.errors import InvalidInputError


def check_number(
    name: str, value: float, holds: Callable[[float], bool], expected: str, *, whole: bool = False
) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name}: must be {'a whole number' if whole else 'a number'}, not {type(value).__name__}")
    if not math.isfinite(value) or not holds(value):
        raise InvalidInputError(f"{value} is not {expected}", field=name)
