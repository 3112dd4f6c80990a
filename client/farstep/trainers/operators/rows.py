"""`MappingRows`: rows as they came, in batches; for what works on rows and not on tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from farstep.trainers.data.collection import collected, content_of, given_parts, given_rows
from farstep.trainers.data.order import permutation
from farstep.trainers.errors import DataError, TrainerError

Row = Mapping[str, Any]


class MappingRows:
    """`farstep.trainers.rows.Rows`, of mappings. Each epoch has an order of its own, by seed and epoch."""

    def __init__(self, rows: Sequence[Row], batch_size: int, *, seed: int, shuffle: bool, drop_last: bool) -> None:
        self.rows = list(rows)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last and len(self.rows) >= batch_size

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_batches(self) -> int:
        whole, rest = divmod(len(self.rows), self._batch_size)
        return whole + bool(rest and not self._drop_last)

    @cached_property
    def identity(self) -> str:
        digest = hashlib.blake2b(repr((self._batch_size, self._seed, self._shuffle, self._drop_last)).encode())
        for row in self.rows:
            digest.update(content_of(row))
        return digest.hexdigest()[:32]

    @property
    def report(self) -> Mapping[str, Any]:
        return {"rows": len(self.rows), "used": len(self.rows)}

    def num_examples(self, index: int) -> int:
        return min(self._batch_size, len(self.rows) - index * self._batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        number = len(self.rows)
        order = permutation(number, self._seed, "epoch", epoch).tolist() if self._shuffle else range(number)
        for index in range(first, self.num_batches):
            start = index * self._batch_size
            yield [self.rows[place] for place in order[start : start + self._batch_size]]


def check_mappings(rows: Any, *, field: str) -> None:
    """Raises TrainerError where they are not a list of rows that have something in them."""
    from farstep.trainers.checks import check_rows

    check_rows(rows, field=field)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not row:
            what = "is empty" if isinstance(row, Mapping) else f"must be a mapping, not {type(row).__name__}"
            raise TrainerError(what, field=f"{field}[{index}]", stage="validate")


def load_mappings(config: Any, train_data: Any, test_data: Any) -> tuple[MappingRows, MappingRows | None]:
    """What was given, else what the configuration's sources have.

    Raises:
        DataError: there is nothing to train on, or a source cannot be read.
    """
    seed = config.data.seed if config.data.seed is not None else config.seed
    if train_data is None:
        train, held_out = collected(config.data, seed=seed)
    else:
        given, kept = given_parts(config.data, train_data, test_data, seed=seed)
        train, held_out = given_rows(given), given_rows(kept) if kept is not None and test_data is None else None
    if train is None:
        raise DataError("there is nothing to train on", field="data.sources")
    rows = [raw.named() for raw in train][: config.data.max_rows]
    made = MappingRows(rows, config.batch_size, seed=seed, shuffle=config.data.shuffle, drop_last=config.data.drop_last)
    if test_data is not None:
        return made, rows_in_order(test_data, config.batch_size)
    return made, rows_in_order([raw.named() for raw in held_out], config.batch_size) if held_out is not None else None


def rows_in_order(rows: Sequence[Row], batch_size: int) -> MappingRows:
    """In their order."""
    return MappingRows(rows, batch_size, seed=0, shuffle=False, drop_last=False)
