"""`SynthesisConfig`: how many new items, by what, and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from farstep.trainers.config.mistakes import from_validation
from farstep.trainers.config.model import Name
from farstep.trainers.config.numbers import Count, Fractional, Number, Positive, Whole
from farstep.trainers.config.section import Section


class SynthesisConfig(Section):
    """
    Raises:
        ConfigError: (also a ValueError) with the place of the mistake.
    """

    strategy: Name = Field(default="llm", description="llm, template, augment, or one of your own")
    num_samples: Count = Field(default=10, description="new items; 0 makes none")
    train_ratio: Annotated[Fractional, Field(gt=0)] = 0.9
    min_score: Number | None = Field(default=None, description="items with a score under this are left out")
    score_key: Name = "score"
    dedupe_key: tuple[Name, ...] = Field(default=(), description="keys by which items are equal; all where none")
    keep_given: bool = Field(default=True, description="have what was given beside what is made")
    seed: Whole = 42
    max_running: Positive = Field(default=16, description="llm: chats at a time")
    max_attempts: Positive = Field(default=3, description="llm: of each chat")
    path: Name | None = Field(default=None, description="llm: JSON Lines of what is done, to go on from")

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise from_validation(error, type(self), {}) from error

    @field_validator("dedupe_key", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
