"""Sequences as columns: few large arrays instead of many small lists, in memory or mapped from a cache's files.

Shapes: S sequences with N tokens in all; sequence s has the tokens from starts[s] to starts[s + 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from farstep.trainers.sequence import TrainSequence


@dataclass(frozen=True, slots=True)
class Table:
    """
    Args:
        tokens: [N] int32.
        mask: [N] float32, weights of targets.
        given: [N] uint8, prompt masks.
        starts: [S + 1] int64.
        origins: [S, 2] int64, source (-1: none) and row.
    """

    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.float32]
    given: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    origins: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> TrainSequence:
        span = slice(int(self.starts[index]), int(self.starts[index + 1]))
        source, row = self.origins[index].tolist()
        return TrainSequence(
            self.tokens[span].tolist(),
            self.mask[span].tolist(),
            self.given[span].tolist(),
            metadata={"source": source, "row": row},
        )

    @staticmethod
    def of(sequences: Sequence[TrainSequence], origins: Iterable[tuple[int, int]]) -> Table:
        return Table(
            _flat([sequence.tokens for sequence in sequences], np.int32),
            _flat([sequence.loss_mask for sequence in sequences], np.float32),
            _flat([sequence.prompt_mask or [] for sequence in sequences], np.uint8),
            np.cumsum([0, *(len(sequence) for sequence in sequences)], dtype=np.int64),
            np.asarray(list(origins), np.int64).reshape(-1, 2),
        )

    @staticmethod
    def joined(parts: Sequence[Table]) -> Table:
        lengths = np.concatenate([np.diff(part.starts) for part in parts] or [np.zeros(0, np.int64)])
        columns = {
            one.name: np.concatenate([getattr(part, one.name) for part in parts])
            if parts
            else getattr(_EMPTY, one.name)
            for one in fields(Table)
            if one.name != "starts"
        }
        return Table(starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), **columns)

    def fingerprint(self) -> str:
        """The hash of every token and mask, and of which belong together."""
        digest = hashlib.sha256()
        for column in (self.tokens, self.mask, self.starts):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def _flat(lists: Sequence[Sequence[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.asarray([value for values in lists for value in values], dtype)


_EMPTY = Table.of([], [])
