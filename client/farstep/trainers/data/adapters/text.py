"""Plain text, for causal training: every token is learnt, between BOS and EOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import Limits, NothingToTrain, Row, RowAdapter
from farstep.trainers.data.fitting import cut_at_end, part
from farstep.trainers.data.report import DataReport
from farstep.trainers.data.sequences import ends, prompt_tokens, text_of
from farstep.trainers.data.tokens import token_ids
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Text(RowAdapter):
    name = "text"
    keys = ("text",)

    def check(self, row: Row) -> None:
        super().check(row)
        text_of(row, "text")

    def to_sequences(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[TrainSequence]:
        before, after = ends(tokenizer, config)
        text = token_ids(tokenizer, text_of(row, "text"))
        tokens = [*before, *text, *after]
        if not text or len(tokens) < 2:
            raise NothingToTrain("the text has no tokens")
        return [TrainSequence(tokens, [1.0] * len(tokens), [0] * len(tokens))]

    def to_prompt(self, row: Row, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> list[int]:
        plain = config.model_copy(update={"apply_chat_template": False})
        return prompt_tokens(text_of(row, "text"), tokenizer, plain, field="text")

    def fitted(
        self, sequences: Sequence[TrainSequence], limits: Limits, config: DataConfig, report: DataReport
    ) -> list[TrainSequence]:
        """What is over the length begins the next row, until nothing is over; the last token of a row and the first
        of the next are not learnt from each other. Rows to be joined stay whole for that.
        """
        if config.join_texts:
            return list(sequences)
        if not config.carry_overflow or limits.max_length is None or config.on_too_long != "truncate":
            return cut_at_end(sequences, limits, config, report, rows_per_group=1)
        return [row for sequence in sequences for row in carried(sequence, limits.max_length, config, report)]


def carried(sequence: TrainSequence, length: int, config: DataConfig, report: DataReport) -> list[TrainSequence]:
    """Rows of at most `length` tokens; a last one of fewer than `min_carry_length` is left out and counted."""
    rows: list[TrainSequence] = []
    for start in range(0, len(sequence), length):
        end = min(start + length, len(sequence))
        if end - start < max(2, config.min_carry_length) and start:
            report.tokens_cut += end - start
            report.truncated += 1
            continue
        rows.append(part(sequence, start, end))
        report.carried += int(start > 0)
    return rows
