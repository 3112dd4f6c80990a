"""`EvolutionConfig`: how many rounds, of what, and when they are enough."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from farstep.trainers.config.mistakes import from_validation
from farstep.trainers.config.numbers import Count, Fractional, Positive
from farstep.trainers.config.section import Section

Phase = Literal["synthesis", "training", "evaluation"]
PHASES: tuple[Phase, ...] = ("synthesis", "training", "evaluation")


class EvolutionConfig(Section):
    """Phases come in the order synthesis, training, evaluation, however they are listed.

    Raises:
        ConfigError: (also a ValueError) with the place of the mistake.
    """

    max_epochs: Positive = 1
    phases: tuple[Phase, ...] = PHASES
    early_stop_threshold: Fractional = Field(default=0.0, description="an accuracy that is enough; 0: none is")
    max_dataset_size: Count = Field(default=100_000, description="rows beyond it are left out; 0: no limit")

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise from_validation(error, type(self), {}) from error

    @field_validator("phases", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("phases", mode="after")
    @classmethod
    def _in_order(cls, value: tuple[Phase, ...]) -> tuple[Phase, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must be some of synthesis, training and evaluation, each once")
        return tuple(phase for phase in PHASES if phase in value)
