"""The configuration of the `operator` trainer: what all have, and what it asks and keeps."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from farstep.trainers.config import TrainerConfig
from farstep.trainers.config.model import ModelConfig, Name
from farstep.trainers.config.numbers import Count, Number, Positive
from farstep.trainers.config.section import Section
from farstep.trainers.errors import ConfigError

NO_MODEL = "none"  # the agent's own affair


class OperatorSection(Section):
    """`optimizer`, `agent` and `reward` are used where the trainer is given none."""

    agent: Name | None = Field(default=None, description="module:name")
    reward: Name | None = Field(default=None, description="module:function")

    optimizer: tuple[Literal["instruction", "tool"], ...] = ("instruction",)
    num_weak: Positive = Field(default=10, description="cases that are criticized at a time")
    weak_below: Number = Field(default=1.0, description="scores under this are weak")
    beam_width: Positive = 3
    max_running: Positive = Field(default=16, description="rows that the agent works on at a time")
    on_worse: Literal["revert", "keep"] = Field(
        default="revert", description="after an epoch that was worse than the best, go on from the best or from it"
    )
    checkpoint_dir: Name | None = Field(default=None, description="`checkpoints` in the run's folder where absent")
    resume_from: Name | None = Field(default=None, description="a checkpoint's file or their folder")

    @field_validator("optimizer", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class OperatorConfig(TrainerConfig):
    """`batch_size` rows make a step of the optimizer; `eval_interval` is in epochs, 0 judges by the training rows."""

    type: Name = "operator"
    model: ModelConfig = ModelConfig(base=NO_MODEL)
    operators: OperatorSection = OperatorSection()
    eval_interval: Count = Field(default=1, description="epochs between validations")

    def check_evaluation(self, *, test_data: bool = False) -> None:
        """Without test data it validates on the rows that it trains on."""

    @model_validator(mode="after")
    def _of_prompts(self) -> Self:
        for name in ("mini_bs", "gradient_accumulation_steps"):
            if getattr(self, name) is not None:
                raise ConfigError("there are no passes over a model here", field=name)
        for index, one in enumerate(self.checkpoint):
            if one.type != "state" or one.save_every_n_steps:
                raise ConfigError("prompts are saved whole, at the end of epochs", field=f"checkpoint[{index}]",
                                  hint="save_every_n_epochs, keep_last, auto_resume")  # fmt: skip
        return self
