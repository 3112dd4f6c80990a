"""The raw rows of a configuration: sources read, sampled, mixed, and parted for evaluation. Nothing is tokenised.

Invariant: with equal configuration and equal sources, equal rows in equal order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from farstep.trainers.config.data import DataConfig
from farstep.trainers.config.sources import SourceConfig
from farstep.trainers.data.order import Indices, mixed, parted, sampled, sliced
from farstep.trainers.data.roles import renamed, with_roles
from farstep.trainers.data.sources.base import Row, Source
from farstep.trainers.errors import DataError


@dataclass(frozen=True, slots=True)
class Reading:
    """How a source says that its rows are to be read."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    role_mapping: Mapping[str, str] | None = None
    content_key: str | None = None

    @staticmethod
    def of(source: SourceConfig) -> Reading:
        return Reading(source.format, source.columns, source.role_mapping, source.content_key)


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it came, and whence: its source's number and its own there, both from 0; -1 is no source."""

    row: Mapping[str, Any]
    reading: Reading
    source_index: int
    row_index: int

    @property
    def place(self) -> str:
        return f"row {self.row_index}" + (f" of source {self.source_index}" if self.source_index >= 0 else "")

    def named(self) -> Mapping[str, Any]:
        """The row under our names.

        Raises:
            DataError: what the source's settings name is not there; says which row, and the keys it has.
        """
        row = self.row
        try:
            if self.reading.columns is not None:
                row = renamed(row, self.reading.columns)
            if self.reading.role_mapping is not None:
                row = with_roles(row, self.reading.role_mapping, self.reading.content_key)
        except DataError as error:
            raise self.blamed(error) from error
        return row

    def blamed(self, error: DataError) -> DataError:
        """The same error, of this row."""
        return type(error)(
            error.message, hint=error.hint, field=f"{self.place}, {error.field}" if error.field else self.place
        )


@dataclass(frozen=True, slots=True)
class RawRows:
    """Rows of several sources in one order: sized and indexable. Rows stay where their source has them."""

    tables: tuple[Sequence[Row], ...]
    readings: tuple[Reading, ...]
    sources: Indices
    numbers: Indices
    from_sources: bool = True

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> RawRow:
        source, number = int(self.sources[index]), int(self.numbers[index])
        row = self.tables[source][number]
        if not isinstance(row, Mapping):
            place = f"row {number}" + (f" of source {source}" if self.from_sources else "")
            raise DataError(f"{type(row).__name__}, not a mapping", field=place)
        return RawRow(row, self.readings[source], source if self.from_sources else -1, number)

    def __iter__(self) -> Iterator[RawRow]:
        return (self[index] for index in range(len(self)))

    def only(self, chosen: Indices) -> RawRows:
        return RawRows(self.tables, self.readings, self.sources[chosen], self.numbers[chosen], self.from_sources)


Collected = tuple[RawRows | None, RawRows | None]  # to train on, to evaluate on


def given_rows(rows: object, *, field: str = "train_data") -> RawRows:
    """Rows that are there already.

    Raises:
        DataError: no list of rows, or an empty one.
    """
    if isinstance(rows, RawRows):
        return rows
    if isinstance(rows, str | bytes | Mapping) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise DataError(f"{type(rows).__name__}, not a list of rows", field=field)
    table: Any = rows
    if len(table) == 0:
        raise DataError("there are no rows", field=field)
    numbers = np.arange(len(table), dtype=np.int64)
    return RawRows((table,), (Reading(),), np.zeros_like(numbers), numbers, from_sources=False)


def collected(config: DataConfig, *, seed: int) -> Collected:
    """What the configuration has to train on and to evaluate on; None where it names nothing.

    Raises:
        DataError: a source cannot be read, or gives nothing.
    """
    train = _mixed(config, config.sources, seed, "data.sources")
    held_out = _mixed(config, config.eval_sources, seed, "data.eval_sources")
    if train is not None and config.train_eval_share:
        return _parted(train, config.train_eval_share, seed)
    return train, held_out


def given_parts(config: DataConfig, train_data: object, test_data: object, *, seed: int) -> tuple[object, object]:
    """Rows that were given, parted for evaluation where the configuration says so and nothing else was given for it.

    Raises:
        DataError: no list of rows, an empty one, or one that cannot be parted.
    """
    if train_data is None or test_data is not None or not config.train_eval_share:
        return train_data, test_data
    return _parted(given_rows(train_data), config.train_eval_share, seed)


def _parted(rows: RawRows, eval_share: float, seed: int) -> tuple[RawRows, RawRows]:
    contents = [content_of(raw.row) for raw in rows]
    train, held_out = parted(contents, eval_share, seed, "split")
    if not len(train) or not len(held_out):
        raise DataError(f"{len(rows)} rows cannot be parted", field="data.train_eval_split")
    return rows.only(train), rows.only(held_out)


def _mixed(config: DataConfig, sources: Sequence[SourceConfig], seed: int, field: str) -> RawRows | None:
    if not sources:
        return None
    tables: list[Sequence[Row]] = []
    chosen: list[Indices] = []
    for index, source in enumerate(sources):
        table = Source.get(source.type)(source).rows()
        rows = sliced(len(table), source.slice)
        own_seed = seed if source.sample_seed is None else source.sample_seed
        try:
            chosen.append(sampled(rows, source.sample_ratio, source.sample_count, own_seed, "sample", index))
        except DataError as error:
            raise DataError(error.message, field=f"{field}[{index}].{error.field}", hint=error.hint) from error
        if not len(chosen[-1]):
            raise DataError(f"gives no rows ({len(table)} there, {len(rows)} in its slice)", field=f"{field}[{index}]")
        tables.append(table)
    which, places = mixed([len(rows) for rows in chosen], config.mixing, seed, "mix")
    numbers = np.empty_like(places)
    for index, its_rows in enumerate(chosen):
        here = which == index
        numbers[here] = its_rows[places[here]]
    found = RawRows(tuple(tables), tuple(map(Reading.of, sources)), which, numbers)
    return found.only(np.arange(min(len(found), config.max_rows or len(found))))


def content_of(row: Row) -> bytes:
    """What makes two rows equal."""
    return hashlib.blake2b(json.dumps(row, sort_keys=True, default=repr).encode(), digest_size=16).digest()
