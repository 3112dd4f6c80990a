"""Files as rows: JSON Lines, JSON, CSV and Parquet. Every mistake is told with its file and line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from farstep.errors import MissingExtraError
from farstep.trainers.data.sources.base import Row
from farstep.trainers.errors import DataError

SUFFIXES = ("jsonl", "json", "csv", "parquet")


def suffix_of(name: str) -> str | None:
    """`jsonl` of `a/b.JSONL.gz`; None where the name does not tell."""
    parts = name.lower().removesuffix(".gz").rpartition(".")
    ending = {"ndjson": "jsonl", "pq": "parquet"}.get(parts[2], parts[2])
    return ending if parts[1] and ending in SUFFIXES else None


def read_rows(path: Path, suffix: str, *, shown: str) -> Sequence[Row]:
    """
    Args:
        shown: what the file is called in messages.

    Raises:
        DataError: it cannot be read, or is not what its suffix says.
        MissingExtraError: Parquet, and pyarrow is not installed.
    """
    try:
        if suffix == "parquet":
            return _parquet(path, shown)
        with _opened(path) as file:
            match suffix:
                case "jsonl":
                    return list(_json_lines(file, shown))
                case "json":
                    return _json(file, shown)
                case "csv":
                    return list(_csv(file, shown))
                case _:
                    raise DataError(
                        f"unknown kind of file {suffix!r}", field=shown, hint=f"one of {', '.join(SUFFIXES)}"
                    )
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", field=shown) from error
    except (EOFError, UnicodeDecodeError) as error:
        raise DataError(f"is broken, or no UTF-8 text: {error}", field=shown) from error


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    opened = gzip.open if packed else open
    return opened(path, "rt", encoding="utf-8-sig", newline="")


def _json_lines(file: TextIO, shown: str) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"no JSON: {error}", field=f"{shown} line {number}") from error
        yield _mapping(row, f"{shown} line {number}")


def _json(file: TextIO, shown: str) -> Sequence[Row]:
    try:
        value = json.load(file)
    except ValueError as error:
        raise DataError(f"no JSON: {error}", field=shown, hint="one object a line is suffix: jsonl") from error
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if len(lists) != 1:
            raise DataError(f"an object with {len(lists)} lists, not a list of rows", field=shown)
        value = value[lists[0]]
    if not isinstance(value, list):
        raise DataError(f"{type(value).__name__}, not a list of rows", field=shown)
    return [_mapping(row, f"{shown} row {index}") for index, row in enumerate(value)]


def _csv(file: TextIO, shown: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                names = reader.fieldnames or []
                raise DataError(
                    f"not {len(names)} columns as the first line has", field=f"{shown} line {reader.line_num}"
                )
            yield row
    except csv.Error as error:
        raise DataError(f"no CSV: {error}", field=f"{shown} line {reader.line_num}") from error


def _parquet(path: Path, shown: str) -> Sequence[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet needs pyarrow", hint="pip install 'farstep[data]'") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"no Parquet: {error}", field=shown) from error
    return rows


def _mapping(row: object, shown: str) -> Row:
    if not isinstance(row, Mapping):
        raise DataError(f"{type(row).__name__}, not an object with keys", field=shown)
    return row
