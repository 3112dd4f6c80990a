"""`Program`: what `farstep train` and `farstep check` are given, config.yaml or file.py, and the trainer it comes to.

A YAML file is a configuration; its `type` names the trainer. A Python file defines `trainer`, a trainer or a function
that makes one; or one class of trainer, with `config` and, if they are not in there, `train_data`, `test_data`,
`reward_fn` and `agent`. What `--set` says wins over all of it. Nothing here asks a server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from farstep.cli.command import Refused

if TYPE_CHECKING:
    from farstep.trainers.config import TrainerConfig
    from farstep.trainers.trainer import Trainer

_GIVEN = ("train_data", "test_data", "reward_fn", "agent")
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Program:
    """
    Args:
        path: of the file.
        changes: from `--set`, in sections.
    """

    path: Path
    changes: Mapping[str, Any]

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Program:
        """
        Raises:
            Refused: no such file, or a `--set` that is none.
        """
        path = arguments.file.expanduser()
        if path.suffix not in (".py", *YAML_SUFFIXES):
            raise Refused(f"{path}: neither a .yaml nor a .py file")
        if not path.is_file():
            raise Refused(f"{path}: no such file; `farstep init` makes one")
        return cls(path, parsed_changes(arguments.set))

    def trainer(self) -> Trainer:
        """A new trainer, with nothing checked but its configuration.

        Raises:
            FarstepError: naming the setting, or the name that the file lacks.
        """
        self.make_importable()
        if self.path.suffix != ".py":
            return self._of_yaml()
        trainer = self._of_python()
        if self.changes:
            trainer.check_config(self.changes)
        return trainer

    def config(self) -> TrainerConfig:
        """The configuration alone."""
        return self.trainer().config

    def make_importable(self) -> None:
        """So that "module:function" finds what lies beside the file, as it would for `python file.py`."""
        folder = str(self.path.resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)

    def _of_yaml(self) -> Trainer:
        from farstep.trainers.config.code import load_code
        from farstep.trainers.config.load import settings_of
        from farstep.trainers.trainer import Trainer

        settings, changes = settings_of(self.path), dict(self.changes)
        code = settings.get("code", ())
        load_code(code if isinstance(code, list | tuple) else [code], folder=Path())  # they may define the trainer
        kind = changes.pop("type", settings.get("type", "sft"))
        if "model" in changes and "model" not in settings:  # what a file leaves open may be said here
            settings = {**settings, "model": changes.pop("model")}
        trainer = Trainer.get(kind if isinstance(kind, str) else "sft")({**settings, "type": kind})
        if changes:
            trainer.check_config(changes)
        return trainer

    def _of_python(self) -> Trainer:
        from farstep.trainers.config.code import load_code
        from farstep.trainers.trainer import Trainer

        (module,) = load_code([str(self.path.resolve())], folder=Path())
        found = getattr(module, "trainer", None)
        if isinstance(found, Trainer):
            return found
        if callable(found) and not isinstance(found, type):
            made = found()
            if not isinstance(made, Trainer):
                raise Refused(f"{self.path}: trainer() gave a {type(made).__name__}, not a Trainer")
            return made
        if found is not None:
            raise Refused(
                f"{self.path}: `trainer` is a {type(found).__name__}, not a Trainer or a function that makes one"
            )
        return self._of_class(module)

    def _of_class(self, module: ModuleType) -> Trainer:
        from farstep.trainers.trainer import Trainer

        own = [
            each
            for each in vars(module).values()
            if isinstance(each, type) and issubclass(each, Trainer) and each.__module__ == module.__name__
        ]
        kinds = [each for each in own if not any(other is not each and issubclass(other, each) for other in own)]
        if len(kinds) != 1:
            found = ", ".join(each.__name__ for each in kinds) or "none"
            raise Refused(f"{self.path}: say `trainer = …`, or define one class of trainer; it has {found}")
        config = getattr(module, "config", None)
        if config is None:
            raise Refused(f"{self.path}: {kinds[0].__name__} needs a configuration; say `config = …` or `trainer = …`")
        given = {name: getattr(module, name) for name in _GIVEN if getattr(module, name, None) is not None}
        return kinds[0](config, **given)


def add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="config.yaml, or a Python file that defines a trainer")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting that wins over the file's, such as optimizer.lr=1e-4; may be repeated",
    )


def parsed_changes(given: Sequence[str]) -> dict[str, Any]:
    """`["optimizer.lr=1e-4"]` as `{"optimizer": {"lr": "1e-4"}}`; values are YAML.

    Raises:
        Refused: one is not of the form name=value, or stands twice.
    """
    changes: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        parts = name.strip().split(".")
        if not sign or not all(part.isidentifier() for part in parts):
            raise Refused(f"--set {text}: must be name=value, such as optimizer.lr=1e-4")
        place = changes
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise Refused(f"--set {text}: {part} has a value of its own already")
        if parts[-1] in place:
            raise Refused(f"--set {name}: given twice")
        place[parts[-1]] = _value(text, value)
    return changes


def _value(text: str, value: str) -> Any:
    import yaml

    import farstep.trainers.config  # noqa: F401 (says which extra it is that is missing)

    try:
        return yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise Refused(f"--set {text}: {value!r} is no YAML: {error}") from error
