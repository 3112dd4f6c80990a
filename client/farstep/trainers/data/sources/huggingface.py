"""Data sets of the Hugging Face hub, and folders in its forms, read by `datasets` (extra `data`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from farstep.errors import MissingExtraError
from farstep.trainers.data.sources.base import Row, Source
from farstep.trainers.data.sources.files import SUFFIXES
from farstep.trainers.errors import DataError


class HuggingFace(Source):
    """A split of a data set. What `datasets` downloaded before is read again without a network."""

    name = "huggingface"

    def rows(self) -> Sequence[Row]:
        datasets = _library()
        config = self.config
        if Path(config.name).expanduser().is_file():
            raise DataError("a file, and its name does not tell of what kind", field=config.name,
                            hint=f"say {{path: {config.name}, suffix: {' | '.join(SUFFIXES)}}}")  # fmt: skip
        if (Path(config.name).expanduser() / "dataset_dict.json").is_file() or (
            Path(config.name).expanduser() / "state.json"
        ).is_file():
            return self._saved(datasets)
        try:
            loaded = datasets.load_dataset(
                config.name, config.subset, split=config.split, revision=config.revision, **config.kwargs
            )
        except Exception as error:  # whatever `datasets` and the hub raise: the user's name, split or network
            raise self._refusal(datasets, error) from error
        return cast("Sequence[Row]", loaded)

    def fingerprint(self) -> str:
        """Of a folder what lies in it; of the hub the revision, which the configuration names."""
        folder = Path(self.config.name).expanduser()
        if not folder.is_dir():
            return ""
        stats = [(str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
        seen = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()

    def _saved(self, datasets: Any) -> Sequence[Row]:
        loaded = datasets.load_from_disk(str(Path(self.config.name).expanduser()))
        if not isinstance(loaded, datasets.DatasetDict):
            return cast("Sequence[Row]", loaded)
        if self.config.split not in loaded:
            raise self._no_split(list(loaded))
        return cast("Sequence[Row]", loaded[self.config.split])

    def _refusal(self, datasets: Any, error: Exception) -> DataError:
        config = self.config
        splits: Sequence[str] = []
        if isinstance(error, ValueError):  # what `datasets` raises for a split that is not there, among others
            with suppress(Exception):
                splits = datasets.get_dataset_split_names(config.name, config.subset, revision=config.revision)
        if splits and config.split not in splits:
            return self._no_split(splits)
        text = " ".join(str(error).split())
        if "Config name is missing" in text or "BuilderConfig" in text:
            return DataError(text[:500], field=config.name, hint="give subset:")
        return DataError(f"cannot be loaded: {type(error).__name__}: {text[:500]}", field=config.name)

    def _no_split(self, splits: Sequence[str]) -> DataError:
        return DataError(
            f"no split {self.config.split!r}", field=self.config.name, hint=f"there are: {', '.join(splits)}"
        )


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("data sets of the hub need datasets", hint="pip install 'farstep[data]'") from error
    return datasets
