"""The names that may stand in a configuration, for a command's help.

Ours, those of installed packages, and those that a file on the same command line brings (`code:`, or the file itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from farstep.cli.program import YAML_SUFFIXES
from farstep.errors import FarstepError


def known_names(argv: Sequence[str]) -> str:
    """One line of trainers, one of data sources, …; empty where trainers are not installed."""
    try:
        from farstep.trainers.checkpoints import CheckpointEngine
        from farstep.trainers.data.adapters.base import RowAdapter
        from farstep.trainers.data.sources.base import Source
        from farstep.trainers.registry import Registered
        from farstep.trainers.schedules import Schedule
        from farstep.trainers.trackers.base import Tracker
        from farstep.trainers.trainer import Trainer
    except FarstepError:
        return ""
    for argument in argv:
        _load(Path(argument))
    families: dict[str, type[Registered]] = {
        "trainers (type)": Trainer,
        "data sources": Source,
        "forms of rows": RowAdapter,
        "schedules": Schedule,
        "checkpoints": CheckpointEngine,
        "trackers": Tracker,
    }
    return "; ".join(f"{what}: {', '.join(family.names())}" for what, family in families.items())


def _load(path: Path) -> None:
    """What is wrong with a file is for the command itself to say."""
    from farstep.trainers.config.code import load_code
    from farstep.trainers.config.load import settings_of

    try:
        if path.suffix == ".py" and path.is_file():
            load_code([str(path.resolve())], folder=Path())
        elif path.suffix in YAML_SUFFIXES and path.is_file():
            code = settings_of(path).get("code", ())
            load_code(code if isinstance(code, list | tuple) else [code], folder=Path())
    except FarstepError:
        return
