"""Rows of files on this machine."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path

from farstep.trainers.data.sources.base import Row, Source
from farstep.trainers.data.sources.files import SUFFIXES, read_rows, suffix_of
from farstep.trainers.errors import DataError


class File(Source):
    """One file, or all that a pattern finds, in the order of their names."""

    name = "file"

    def rows(self) -> Sequence[Row]:
        parts = [read_rows(path, self._suffix(path), shown=str(path)) for path in self._paths()]
        return parts[0] if len(parts) == 1 else [row for part in parts for row in part]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self._paths():
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror}", field=str(path)) from error
        return digest.hexdigest()

    def _paths(self) -> list[Path]:
        path = Path(self.config.path).expanduser()
        if path.is_file():
            return [path]
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError("no such file", field=str(self.config.path), hint=_hint(path))
        return found

    def _suffix(self, path: Path) -> str:
        suffix: str | None = self.config.suffix or suffix_of(path.name)
        if suffix is None:
            raise DataError("what kind of file is it?", field=str(path), hint=f"give suffix: {' | '.join(SUFFIXES)}")
        return suffix


def _hint(path: Path) -> str:
    if not path.is_dir():
        return f"looked in {Path.cwd()}"
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return f"a folder of save_to_disk: write {{name: {path}}}"
    return "a folder: name its files, as in folder/*.jsonl"
