"""Rows within the length that the model takes: cut, dropped or refused, and always counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from farstep.trainers.data.report import DataReport
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from farstep.trainers.config.data import DataConfig
    from farstep.trainers.data.adapters.base import Limits


def cut_at_end(
    sequences: Sequence[TrainSequence], limits: Limits, config: DataConfig, report: DataReport, *, rows_per_group: int
) -> list[TrainSequence]:
    """Each group as a whole: kept, with what is over `max_length` cut off its sequences, or dropped.

    A group is dropped, and counted, if one of its sequences has nothing left to learn.
    """
    kept: list[TrainSequence] = []
    for first in range(0, len(sequences), rows_per_group):
        group = sequences[first : first + rows_per_group]
        longest = max(len(sequence) for sequence in group)
        too_long = limits.max_length is not None and longest > limits.max_length
        if too_long and config.on_too_long == "error":
            raise DataError(
                f"{longest} tokens, and at most {limits.max_length} are allowed",
                hint="data.on_too_long: truncate | drop, or a larger data.max_length",
            )
        if too_long and config.on_too_long == "drop":
            report.dropped_too_long += 1
            continue
        cut = [_cut(sequence, limits.max_length, report) for sequence in group]
        if any(sequence.num_targets == 0 for sequence in cut):
            report.dropped_no_targets += 1
            continue
        kept += cut
    return kept


def _cut(sequence: TrainSequence, length: int | None, report: DataReport) -> TrainSequence:
    if length is None or len(sequence) <= length:
        return sequence
    report.truncated += 1
    report.tokens_cut += len(sequence) - length
    return part(sequence, 0, length)


def part(sequence: TrainSequence, start: int, end: int) -> TrainSequence:
    """The tokens from `start` to `end`. The first token of a part is no target: nothing is before it."""
    mask = sequence.loss_mask[start:end]
    given = sequence.prompt_mask or []
    return sequence.replace(
        tokens=sequence.tokens[start:end], loss_mask=mask, prompt_mask=given[start:end] if given else None
    )
