"""The data: sources, how rows become tokens, and in which order they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from farstep.trainers.config.model import Name
from farstep.trainers.config.numbers import Fractional, Positive, Whole, real
from farstep.trainers.config.section import Section
from farstep.trainers.config.sources import BUILT_IN, SourceConfig, spelled_out

Sources = tuple[SerializeAsAny[SourceConfig], ...]


class DataConfig(Section):
    """What is trained on.

    Of a conversation the assistant's turns are trained (`mask_inputs`), all of them or the last alone (`train_on`).
    What is over `max_length` is cut at its end; rows without a target left are dropped, and both are counted.
    """

    sources: Sources = ()
    eval_sources: Sources = ()
    train_eval_split: tuple[Fractional, Fractional] | None = Field(
        default=None, description="[train, eval], or eval's share"
    )
    mixing: Literal["shuffle", "concatenate", "interleave"] = "shuffle"
    shuffle: bool = True
    seed: Whole | None = Field(default=None, description="the trainer's `seed` where absent")
    max_rows: Positive | None = Field(default=None, description="the first rows after mixing, for trials")

    format: Name | None = Field(default=None, description="the row adapter; chosen by a row's keys where absent")
    prompt_key: Name = "prompt"
    solutions_key: Name = "solutions"
    max_length: Annotated[Positive, Field(ge=2)] | None = Field(
        default=None, description="tokens of a row; the model's limit where absent"
    )
    max_prompt_length: Positive | None = Field(default=None, description="dpo cuts prompts, RL skips them, over this")
    prompt_truncation: Literal["keep_start", "keep_end"] = "keep_end"
    on_too_long: Literal["truncate", "drop", "error"] = "truncate"

    apply_chat_template: bool | None = Field(
        default=None, description="to prompts and answers of plain text; where there is a template, if absent"
    )
    chat_template: str | None = Field(default=None, description="instead of the tokenizer's own; Jinja")
    chat_template_kwargs: Mapping[str, Any] = {}
    mask_inputs: bool = True
    train_on: Literal["all", "last"] = "all"
    on_rewritten_turns: Literal["error", "split"] = Field(
        default="error",
        description="a template that changes earlier turns: refuse, or give each turn a row as it was sampled",
    )
    ignore_empty_think: bool = False

    add_bos: bool = Field(default=True, description="causal: begin each text with BOS, where the tokenizer has one")
    add_eos: bool = True
    carry_overflow: bool = Field(default=True, description="causal: what is over max_length begins the next row")
    join_texts: bool = Field(default=False, description="causal: fill rows to max_length with one text after another")
    min_carry_length: Positive = Field(
        default=2, description="causal: overflow of fewer tokens is left out, and counted"
    )

    drop_last: bool = False
    cache_dir: Name | None = None
    fail_on_missing_cache: bool = False
    num_proc: Positive = 1

    @field_validator("sources", "eval_sources", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if value is None:
            return ()
        if isinstance(value, list | tuple) and value and all(_is_row(item) for item in value):
            value = [list(value)]
        elif not isinstance(value, list | tuple):
            value = [value]
        return tuple(_source(item, index) for index, item in enumerate(value))

    @field_validator("train_eval_split", mode="before")
    @classmethod
    def _pair(cls, value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            share = real(value)
            if not isinstance(share, int | float) or not 0 < share < 1:
                raise ValueError("must be eval's share, between 0 and 1, or [train, eval]")
            return 1.0 - share, float(share)
        if len(value) != 2:
            raise ValueError(f"must be [train, eval], two numbers, not {len(value)}")
        return tuple(value)

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.train_eval_split is not None:
            if abs(sum(self.train_eval_split) - 1) > 1e-9:
                raise ValueError(f"train_eval_split must add up to 1, not {sum(self.train_eval_split):g}")
            if self.train_eval_split[0] <= 0:
                raise ValueError("train_eval_split leaves nothing to train on")
            if self.eval_sources and self.train_eval_split[1] > 0:
                raise ValueError("eval_sources and train_eval_split exclude each other: give one")
        return self

    @property
    def has_eval(self) -> bool:
        """Whether there are rows to evaluate on in here."""
        return bool(self.eval_sources) or self.train_eval_share > 0

    @property
    def train_eval_share(self) -> float:
        """Of rows that are held out to evaluate on; 0: none."""
        return self.train_eval_split[1] if self.train_eval_split is not None else 0.0


def _is_row(item: object) -> bool:
    """A mapping that is no source: none has these keys, and rows of the known formats have one of them."""
    return isinstance(item, dict) and not (item.keys() & {"type", "url", "path", "rows", "function", "name"})


def _source(item: object, index: int) -> SourceConfig:
    from pydantic import TypeAdapter, ValidationError

    from farstep.trainers.config.mistakes import from_validation
    from farstep.trainers.errors import ConfigError, RegistryError

    spelled = spelled_out(item)
    if isinstance(spelled, SourceConfig):
        return spelled
    if not isinstance(spelled, dict) or not isinstance(spelled.get("type"), str):
        raise ConfigError(
            "no source: write name[:split], a path, an https address, a mapping, a list of rows or a function",
            field=f"[{index}]",
        )
    try:
        kind = BUILT_IN.get(spelled["type"]) or _registered(spelled["type"])
        return TypeAdapter(kind).validate_python(spelled)
    except RegistryError as error:
        raise ConfigError(error.message, field=f"[{index}].type", hint=error.hint) from error
    except ValidationError as error:
        found = from_validation(error, kind, {})
        raise ConfigError(found.message, field=f"[{index}].{found.field}".rstrip("."), hint=found.hint) from error


def _registered(name: str) -> type[SourceConfig]:
    """Of a source of the user's own: loaded only when somebody names it."""
    from farstep.trainers.data.sources.base import Source

    return Source.get(name).config_class
