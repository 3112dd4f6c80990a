"""`SynthesisResult`: what was made, in two parts, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """Item number `index` of those that were to be made; `text` is what was answered, if anything."""

    index: int
    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class SynthesisResult:
    """
    Args:
        items: all, given ones first; `train` and `test` are parts of it, each in its order.
        failures: what could not be made.
        metadata: how many were `given`, `filtered`, `duplicates`, `made`, `failed`; `strategy` and `seed`.
    """

    items: list[Item]
    train: list[Item]
    test: list[Item]
    failures: list[Failure] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
