"""The model that is trained, and the adapter that trains it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from farstep.trainers.config.numbers import Fractional, NonNegative, Positive, Whole
from farstep.trainers.config.section import Section

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class LoraConfig(Section):
    """The adapter. `max_length` cuts sequences where it is shorter than `data.max_length`."""

    r: Positive = 32
    alpha: NonNegative | None = Field(default=None, description="scale; the server's default where absent")
    max_length: Positive | None = None
    load_in_4bit: bool = False
    dropout: Annotated[Fractional, Field(lt=1)] = 0.0
    target_modules: tuple[Name, ...] | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    seed: Whole | None = None


class ModelConfig(Section):
    """`base` is a name that the server knows; `path` a checkpoint of ours to begin from."""

    base: Name
    path: Name | None = None
    lora: LoraConfig = LoraConfig()
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    tokenizer: Name | None = Field(default=None, description="another tokenizer than the model's own")
    replicas: Positive = 1
