"""Pairs: `chosen` and `rejected`, and `prompt` where they do not begin with it. Two sequences, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import Limits, NothingToTrain, Row, RowAdapter
from farstep.trainers.data.conversation import messages_of, tools_of, trained_turns
from farstep.trainers.data.fitting import cut_at_end
from farstep.trainers.data.report import DataReport
from farstep.trainers.data.sequences import as_chat, of_conversation, of_plain, prompt_messages, prompt_tokens
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]


class Preference(RowAdapter):
    """All that follows the prompt is learnt (or judged): of conversations, the assistant's turns in it.

    Without `prompt`, the messages that both begin with are the prompt.
    """

    name = "preference"
    keys = ("chosen", "rejected")
    rows_per_group = 2

    def check(self, row: Row) -> None:
        super().check(row)
        if not _is_plain(row):
            _conversations(row)

    def to_sequences(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[TrainSequence]:
        config = config.model_copy(update={"mask_inputs": True, "on_rewritten_turns": "error"})
        if _is_plain(row) and not as_chat(tokenizer, config):
            prompt = row.get("prompt", "")
            return [of_plain(prompt, row[side], tokenizer, config) for side in ("chosen", "rejected")]
        asked, sides = _conversations(row)
        return [self._side(asked, side, tokenizer, config, row) for side in sides]

    def to_prompt(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[int]:
        if _is_plain(row):
            return prompt_tokens(row.get("prompt", ""), tokenizer, config, field="prompt")
        return prompt_tokens(_conversations(row)[0], tokenizer, config, field="prompt", tools=tools_of(row))

    def _side(
        self, asked: Messages, side: Messages, tokenizer: PreTrainedTokenizerBase, config: DataConfig, row: Row
    ) -> TrainSequence:
        messages = asked + side
        turns = [turn for turn in trained_turns(messages, config.train_on) if turn >= len(asked)]
        if not turns:
            raise NothingToTrain("nothing of the assistant's follows the prompt")
        return of_conversation(messages, turns, tokenizer, config, tools=tools_of(row))[0]

    def fitted(
        self, sequences: Sequence[TrainSequence], limits: Limits, config: DataConfig, report: DataReport
    ) -> list[TrainSequence]:
        """Prompts are cut to `max_prompt_length` first, at the side that `prompt_truncation` does not keep."""
        cut = [_with_short_prompt(sequence, limits, config, report) for sequence in sequences]
        return cut_at_end(cut, limits, config, report, rows_per_group=2)


def _is_plain(row: Row) -> bool:
    return all(isinstance(row.get(key, ""), str) for key in ("prompt", "chosen", "rejected"))


def _conversations(row: Row) -> tuple[Messages, tuple[Messages, Messages]]:
    """The prompt's messages, and what follows them on both sides."""
    prompt = row.get("prompt")
    asked = prompt_messages(prompt, "prompt") if prompt else []
    chosen, rejected = (_answer(row[side], side, asked) for side in ("chosen", "rejected"))
    if not asked:
        common = 0
        while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
            common += 1
        asked, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
    if not chosen or not rejected:
        raise DataError("chosen and rejected are the same, or one is the beginning of the other", field="rejected")
    if not asked:
        raise DataError("no prompt: chosen and rejected have no beginning in common", field="prompt")
    return asked, (chosen, rejected)


def _answer(value: object, side: str, asked: Messages) -> Messages:
    """What follows the prompt; many data sets repeat the prompt before it."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = messages_of([value] if isinstance(value, dict) else value, side)
    return messages[len(asked) :] if asked and messages[: len(asked)] == asked else messages


def _with_short_prompt(
    sequence: TrainSequence, limits: Limits, config: DataConfig, report: DataReport
) -> TrainSequence:
    length = next((i for i, weight in enumerate(sequence.loss_mask) if weight), 0)
    over = length - (limits.max_prompt_length or length)
    if over <= 0:
        return sequence
    report.prompts_cut += 1
    report.tokens_cut += over
    cut = slice(0, over) if config.prompt_truncation == "keep_end" else slice(length - over, length)

    def without(values: Sequence[Any]) -> list[Any]:
        return [value for i, value in enumerate(values) if not cut.start <= i < cut.stop]

    return sequence.replace(
        tokens=without(sequence.tokens),
        loss_mask=without(sequence.loss_mask),
        prompt_mask=without(sequence.prompt_mask or []),
    )
