"""What is saved, and when."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from farstep.trainers.config.model import Name
from farstep.trainers.config.numbers import Count, Positive
from farstep.trainers.config.section import Section


class CheckpointConfig(Section):
    """`state` can be resumed from, `export` is an adapter (`peft`) or a whole model (`merged`) on the user's disk."""

    type: Literal["state", "export"] = "state"
    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]*$")] = Field(
        default="", description="export: at the end of its folders' names"
    )
    enabled: bool = True
    output_dir: Name | None = Field(default=None, description="export: the trainer's output_dir where absent")
    format: Literal["peft", "merged"] = "peft"
    auto_resume: bool = False
    save_every_n_steps: Count = 0
    save_every_n_epochs: Count = 0
    save_end_of_training: bool = True
    keep_last: Positive | None = None
    keep_best: Positive | None = Field(default=None, description="beside those, by the metric of early_stopping")
    ttl_seconds: Positive | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _spelling(cls, value: object) -> object:
        others = {"deepspeed": "state", "huggingface": "export"}
        return others.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _possible(self) -> CheckpointConfig:
        if self.auto_resume and self.type != "state":
            raise ValueError("auto_resume needs a checkpoint of type state: an export has no optimizer")
        if self.name and self.type != "export":
            raise ValueError("name is for exports: a state is known by its step")
        return self
