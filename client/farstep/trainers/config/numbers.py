"""Numbers as people write them: `1k`, `1Ki`, `2^20`, `1e-6`, `50%`, `1_000`.

Decimal suffixes k, M, G (or B), T are powers of 1000, those with an i of 1024. Nothing is rounded: a count must come
out whole. Not here: units of time or bytes.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field

_SUFFIXES = {"": 1}
_SUFFIXES |= {letter: 1000**power for power, letters in enumerate(("kK", "mM", "gGbB", "tT"), 1) for letter in letters}
_SUFFIXES |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGT", 1)} | {"ki": 1024}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*)?(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([a-zA-Z]{0,2}|%)")
_POWER = re.compile(r"(\d+)\s*(?:\^|\*\*)\s*(\d{1,3})")


def exact_number(text: str) -> Fraction:
    """What the text says, exactly.

    Raises:
        ValueError: it is no number.
    """
    stripped = text.strip()
    if power := _POWER.fullmatch(stripped):
        return Fraction(int(power[1]) ** int(power[2]))
    found = _NUMBER.fullmatch(stripped)
    if found is None or not any(digit.isdigit() for digit in found[1]):
        raise ValueError(f"{text!r} is no number (write 1000, 1k, 1Ki, 2^20, 1e-6 or 50%)")
    digits, suffix = found[1].replace("_", ""), found[2]
    if suffix != "%" and suffix not in _SUFFIXES:
        raise ValueError(
            f"{text!r} ends with an unknown suffix {suffix!r} (known are k, M, G, T, Ki, Mi, Gi, Ti and %)"
        )
    exponent = re.search(r"[eE]([+-]?\d+)", digits)
    if exponent is not None and abs(int(exponent[1])) > 300:
        raise ValueError(f"{text!r} is out of range")
    return Fraction(digits) / 100 if suffix == "%" else Fraction(digits) * _SUFFIXES[suffix]


def whole(value: object) -> object:
    """For fields that count something. Whatever is no number is left for pydantic to refuse."""
    match value:
        case bool():
            raise ValueError(f"must be a whole number, not {str(value).lower()}")
        case float() if not value.is_integer():
            raise ValueError(f"must be a whole number, not {value}")
        case float():
            return int(value)
        case str():
            exact = exact_number(value)
            if exact.denominator != 1:
                raise ValueError(f"must be a whole number, not {value}")
            return exact.numerator
        case _:
            return value


def real(value: object) -> object:
    """For fields that measure something: finite."""
    match value:
        case bool():
            raise ValueError(f"must be a number, not {str(value).lower()}")
        case float() | int() if not math.isfinite(value):
            raise ValueError(f"must be finite, not {value}")
        case str():
            return float(exact_number(value))
        case _:
            return value


Whole = Annotated[int, BeforeValidator(whole)]
Count = Annotated[int, BeforeValidator(whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(whole), Field(ge=1)]
Number = Annotated[float, BeforeValidator(real)]
NonNegative = Annotated[float, BeforeValidator(real), Field(ge=0)]
Fractional = Annotated[float, BeforeValidator(real), Field(ge=0, le=1)]
