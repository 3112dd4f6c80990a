"""`Best`: the best that operators have been, and in which epoch that was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Best:
    """`epoch` 0: as they began. `accuracy` None: it was not measured yet."""

    epoch: int = 0
    accuracy: float | None = None
    states: Mapping[str, Any] | None = None

    def beaten_by(self, accuracy: float) -> bool:
        """Equally good is not better: the earlier stays."""
        return self.accuracy is None or accuracy > self.accuracy

    def to_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "accuracy": self.accuracy, "operators": self.states}

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> Best:
        return Best(state["epoch"], state["accuracy"], state["operators"])
