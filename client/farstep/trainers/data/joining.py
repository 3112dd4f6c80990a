"""Texts joined into rows of one length, for causal training: no room is wasted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from farstep.trainers.data.report import DataReport
from farstep.trainers.sequence import TrainSequence


def joined(
    sequences: Iterable[TrainSequence], length: int, report: DataReport, *, min_length: int = 2
) -> Iterator[TrainSequence]:
    """Rows of exactly `length` tokens, and a last one with the rest, if it has `min_length`.

    A text's first token is learnt from the text before it, as in pretraining: BOS and EOS mark where one begins.
    """
    tokens: list[int] = []
    mask: list[float] = []
    for sequence in sequences:
        tokens += sequence.tokens
        mask += sequence.loss_mask
        while len(tokens) >= length:
            yield TrainSequence(tokens[:length], mask[:length], [0] * length)
            tokens, mask = tokens[length:], mask[length:]
            report.carried += int(bool(tokens))
    if len(tokens) >= max(2, min_length):
        yield TrainSequence(tokens, mask, [0] * len(tokens))
    elif tokens:
        report.tokens_cut += len(tokens)
        report.truncated += 1
