"""Processed data on the disk: a folder for each key, complete or not there, read without being loaded.

The key is a hash of everything that decides a token: sources and what lies there, the settings of `KEYED`, the
tokenizer, the limits. Whatever else changes, the cache is found again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from farstep.trainers.config.resolved import as_data
from farstep.trainers.config.sources import SourceConfig
from farstep.trainers.data.adapters.base import RowAdapter
from farstep.trainers.data.processing import Plan, own_adapters
from farstep.trainers.data.report import DataReport
from farstep.trainers.data.sources.base import Source
from farstep.trainers.data.table import Table
from farstep.trainers.errors import DataError

# Changed when the same row gives other tokens than before.
FORM = 1
NOT_KEYED = frozenset(
    {
        "sources",
        "eval_sources",
        "shuffle",
        "seed",
        "max_length",
        "max_prompt_length",
        "prompt_key",
        "solutions_key",
        "drop_last",
        "cache_dir",
        "fail_on_missing_cache",
        "num_proc",
    }
)


def source_key(source: SourceConfig) -> dict[str, Any]:
    """A source's settings that say which rows there are, and the fingerprint of what lies there.

    Raises:
        DataError: what lies there cannot be looked at.
    """
    kind = Source.get(source.type)
    settings = {name: value for name, value in as_data(source).items() if name not in source.unhashed}
    return {"settings": settings, "there": kind(source).fingerprint()}


def key_of(plan: Plan, rows: object, *, formats: Iterable[str | None], tokenizer: str, seed: int, part: str) -> str:
    """
    Args:
        rows: what names the raw rows, as JSON has it: their sources' keys, or their hash.
        formats: those that sources name.
        tokenizer: its fingerprint.
        part: "train" or "eval".
    """
    settings = {name: value for name, value in as_data(plan.config).items() if name not in NOT_KEYED}
    own = {adapter.name: _written(adapter) for adapter in own_adapters(plan.config.format, *formats)}
    named = {
        "form": FORM,
        "part": part,
        "rows": rows,
        "settings": settings,
        "limits": [plan.limits.max_length, plan.limits.max_prompt_length],
        "rows_per_group": plan.rows_per_group,
        "seed": seed,
        "tokenizer": tokenizer,
        "adapters": own,
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def _written(adapter: type[RowAdapter]) -> str:
    try:
        return inspect.getsource(adapter)
    except (OSError, TypeError):
        return f"{adapter.__module__}:{adapter.__qualname__}"


class Cache:
    """A folder of processed data. Several processes may use it at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, key: str) -> Path:
        return self.folder / key

    def load(self, key: str) -> tuple[Table, DataReport] | None:
        """What was saved under the key; None where nothing was, or where it is no longer whole."""
        folder = self.path(key)
        if not folder.is_dir():
            return None
        try:
            about = json.loads((folder / "about.json").read_text())
            table = Table(**{one.name: np.load(folder / f"{one.name}.npy", mmap_mode="r") for one in fields(Table)})
            whole = [len(table), len(table.tokens), len(table.mask), len(table.given)] == about["sizes"]
            report = DataReport(**about["report"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{folder} is broken and is made anew: {error}", RuntimeWarning, stacklevel=2)
            return None
        return (table, report) if whole else None

    def save(self, key: str, table: Table, report: DataReport, *, about: Mapping[str, Any]) -> None:
        """Written beside, then renamed.

        Raises:
            DataError: it cannot be written.
        """
        sizes = [len(table), len(table.tokens), len(table.mask), len(table.given)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=self.folder, prefix=".unfinished-"))
            try:
                for one in fields(Table):
                    # An array of no tokens cannot be mapped; numpy reads it as it is.
                    np.save(unfinished / f"{one.name}.npy", getattr(table, one.name))
                text = json.dumps({"sizes": sizes, "report": report.to_dict(), **about}, indent=1, default=repr)
                (unfinished / "about.json").write_text(text)
                self._put(unfinished, self.path(key))
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        except OSError as error:
            raise DataError(f"cannot write {self.folder}: {error.strerror or error}", field="data.cache_dir") from error

    def _put(self, unfinished: Path, folder: Path) -> None:
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():
                raise
            if self.load(folder.name) is None:  # broken, as was warned of: replace it
                shutil.rmtree(folder)
                os.rename(unfinished, folder)
