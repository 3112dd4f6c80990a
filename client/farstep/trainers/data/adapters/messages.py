"""Conversations: `messages` (or `conversations`), and `tools` where there are any. The assistant's turns are learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import Row, RowAdapter
from farstep.trainers.data.conversation import messages_of, tools_of, trained_turns
from farstep.trainers.data.sequences import of_conversation, prompt_tokens
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Messages(RowAdapter):
    name = "messages"
    keys = (("messages", "conversations"),)

    def check(self, row: Row) -> None:
        super().check(row)
        messages_of(row[_key(row)], _key(row))
        tools_of(row)

    def to_sequences(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[TrainSequence]:
        messages = messages_of(row[_key(row)], _key(row))
        turns = trained_turns(messages, config.train_on)
        return of_conversation(messages, turns, tokenizer, config, tools=tools_of(row))

    def to_prompt(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[int]:
        """Up to the last turn that is not the assistant's."""
        messages = messages_of(row[_key(row)], _key(row))
        while len(messages) > 1 and messages[-1]["role"] == "assistant":
            messages.pop()
        return prompt_tokens(messages, tokenizer, config, field=_key(row), tools=tools_of(row))


def _key(row: Row) -> str:
    return "messages" if "messages" in row else "conversations"
