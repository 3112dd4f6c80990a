"""`CheckpointFiles`: `checkpoint_<epoch>.json` in one folder: whole or not there, and nowhere else.

A file that is not there is None; one that cannot be read is an error, since a silent restart would cost a run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.files import write_whole

VERSION = 1
_NAME = re.compile(r"checkpoint_(\d{1,9})\.json")


class CheckpointFiles:
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def path_of(self, epoch: int) -> Path:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise TrainerError(f"{epoch!r} is no epoch", field="epoch", stage="checkpoint")
        return self.folder / f"checkpoint_{epoch}.json"

    def save(self, epoch: int, state: Mapping[str, Any]) -> Path:
        """On the disk when the call returns.

        Raises:
            TrainerError: the state is not what JSON can hold, or the disk does not take it; an older file of this
                epoch is left as it was.
        """
        path = self.path_of(epoch)
        try:
            text = json.dumps({"version": VERSION, "epoch": epoch, **state}, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TrainerError(f"the state cannot be written: {error}", field=path.name, stage="checkpoint") from error
        try:
            write_whole(path, text)
        except OSError as error:
            raise TrainerError(f"{path} cannot be written: {error.strerror}", field="checkpoint_dir",
                               stage="checkpoint") from error  # fmt: skip
        return path

    def load(self, name: int | str) -> dict[str, Any] | None:
        """The state of an epoch, or of a file's name; None where there is no such file.

        Raises:
            TrainerError: the file is damaged, of a newer version, or not in this folder.
        """
        path = self.path_of(name) if isinstance(name, int) else self._inside(name)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error
        try:
            state = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, str(error)) from error
        if not isinstance(state, dict) or not _is_whole(state.get("epoch")) or not _is_whole(state.get("version")):
            raise _damaged(path, "it has no epoch or version")
        if state["version"] > VERSION:
            raise TrainerError(f"{path} was made by a newer version ({state['version']})", stage="init",
                               hint="update farstep")  # fmt: skip
        return state

    def latest(self) -> dict[str, Any] | None:
        """The state of the highest epoch; None where nothing was saved."""
        epochs = self.epochs()
        return self.load(epochs[-1]) if epochs else None

    def epochs(self) -> list[int]:
        """Those that were saved, ascending."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))

    def keep_last(self, number: int, *, also: int | None = None) -> None:
        """Removes all but the last ones (and one more, the best)."""
        for epoch in self.epochs()[:-number]:
            if epoch != also:
                self.path_of(epoch).unlink(missing_ok=True)

    def put_away(self, *, after: int = -1) -> None:
        """Moves what an earlier run left of epochs after this one to `earlier-<n>`: it is not mistaken for ours."""
        epochs = [epoch for epoch in self.epochs() if epoch > after]
        if not epochs:
            return
        number = 1
        while (away := self.folder / f"earlier-{number}").exists():
            number += 1
        away.mkdir()
        for epoch in epochs:
            os.replace(self.path_of(epoch), away / self.path_of(epoch).name)

    def _inside(self, name: str) -> Path:
        path = (self.folder / name).resolve()
        if path.parent != self.folder.resolve() or not _NAME.fullmatch(path.name):
            raise TrainerError(f"{name!r} is no checkpoint in {self.folder}", field="resume_from", stage="init",
                               hint="checkpoint_<epoch>.json")  # fmt: skip
        return path


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damaged(path: Path, why: str) -> TrainerError:
    return TrainerError(f"{path} is damaged: {why}", field="resume_from", stage="init",
                        hint="move it away to go on from an earlier epoch, or to begin anew")  # fmt: skip
