"""A configuration from wherever it is: a file, its text, a mapping, an object. All give the same object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from farstep.trainers.config.allowed import ANYTHING, Allowed
from farstep.trainers.config.code import load_code
from farstep.trainers.config.trainer import TrainerConfig
from farstep.trainers.config.yaml_text import mapping_from_yaml
from farstep.trainers.errors import ConfigError

C = TypeVar("C", bound=TrainerConfig)


def load_config(
    source: str | PathLike[str] | Mapping[str, Any] | object,
    config_class: type[C] = TrainerConfig,  # type: ignore[assignment]
    *,
    allowed: Allowed = ANYTHING,
    **changes: Any,
) -> C:
    """
    Args:
        source: the path of a YAML file, YAML text (anything with a line break or a colon and a space), a mapping, a
            `TrainerConfig`, or a dataclass with fields of these names.
        config_class: what to make of it.
        allowed: what the source may name that reaches beyond it: `NOTHING` of somebody else's. It binds no `changes`.
        changes: settings that win over the source's (`max_steps=10`), the caller's own.

    Raises:
        ConfigError: no such file, no YAML, a wrong setting, or one that may not be there.
    """
    if isinstance(source, config_class):
        allowed.check(source)
        return source.merged(changes) if changes else source
    settings = settings_of(source)
    if unnamed := [key for key in settings if not isinstance(key, str)]:
        raise ConfigError(f"the key {unnamed[0]!r} is no text")
    if settings.get("code") and not allowed.code:  # before any of it runs; the rest is looked at when it is understood
        raise ConfigError("Python files may not be named here", field="code")
    _load_code(source, {**settings, **changes}.get("code"))
    if allowed != ANYTHING:
        allowed.check(config_class(**settings))
    config = config_class(**settings) if not changes.keys() & {"type"} else config_class(**{**settings, **changes})
    return config.merged(changes) if changes else config


def _load_code(source: object, code: object) -> None:
    """Sources and trainers of the user's own must be known before the settings of theirs are checked."""
    paths = [code] if isinstance(code, str) else list(code) if isinstance(code, list | tuple) else []
    is_file = isinstance(source, PathLike) or (isinstance(source, str) and not _is_text(source))
    load_code(paths, folder=Path(str(source)).expanduser().parent if is_file else Path())


def _is_text(source: str) -> bool:
    return "\n" in source or ": " in source


def settings_of(source: object) -> Mapping[str, Any]:
    """The settings as they were written.

    Raises:
        ConfigError: there are none.
    """
    match source:
        case TrainerConfig():
            return {name: getattr(source, name) for name in type(source).model_fields}
        case Mapping():
            return source
        case str() if _is_text(source):
            return mapping_from_yaml(source)
        case str() | PathLike():
            return _from_file(Path(source).expanduser())
        case _ if dataclasses.is_dataclass(source) and not isinstance(source, type):
            return {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
        case _:
            raise ConfigError(f"no configuration: {type(source).__name__}", hint="a path, YAML, a mapping or an object")


def _from_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text") from error
    settings = mapping_from_yaml(text, name=str(path))
    return {**settings, "code": _beside(path, settings["code"])} if "code" in settings else settings


def _beside(path: Path, code: object) -> object:
    """Paths of Python files are relative to the file that names them."""
    if isinstance(code, str):
        code = [code]
    if not isinstance(code, list):
        return code
    return [str((path.parent / each).resolve()) if isinstance(each, str) else each for each in code]
