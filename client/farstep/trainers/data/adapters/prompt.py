"""Prompts without answers, for reinforcement learning: `prompt` or `input`; solutions stay in the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import Row, RowAdapter
from farstep.trainers.data.conversation import tools_of
from farstep.trainers.data.sequences import prompt_messages, prompt_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompt(RowAdapter):
    name = "prompt"
    keys = ("prompt",)

    def check(self, row: Row) -> None:
        super().check(row)
        prompt_messages(row[self.name], self.name)

    def to_prompt(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[int]:
        return prompt_tokens(row[self.name], tokenizer, config, field=self.name, tools=tools_of(row))


class Input(Prompt):
    name = "input"
    keys = ("input",)
