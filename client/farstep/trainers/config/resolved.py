"""A configuration written out in full: as YAML, or as Python that makes the same object.

Tokens are never written; give them by `token_env`, or again. Functions are written as `module:name`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import SecretStr

from farstep.trainers.config.defaults import DEFAULTS, READERS
from farstep.trainers.config.section import Section

if TYPE_CHECKING:
    from farstep.trainers.config.trainer import TrainerConfig


def as_data(value: Any) -> Any:
    """Plain mappings, lists, numbers and text; every setting with its value."""
    match value:
        case Section():
            left_out: frozenset[str] = getattr(type(value), "unserialized", frozenset())
            return {
                name: as_data(setting)
                for name in type(value).model_fields
                if name not in left_out and not isinstance(setting := getattr(value, name), SecretStr)
            }
        case Mapping():
            return {str(key): as_data(setting) for key, setting in value.items()}
        case list() | tuple():
            return [as_data(item) for item in value]
        case PurePath():
            return str(value)
        case _ if callable(value):
            return f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
        case _:
            return value


def shown_settings(config: TrainerConfig) -> dict[str, Any]:
    """For events and reports: as `as_data`, with the number of rows where rows stand in the configuration."""
    settings: dict[str, Any] = _settings(config)
    for name in ("sources", "eval_sources"):
        for source in settings["data"][name]:
            if "rows" in source:
                source["rows"] = f"{len(source['rows']):,} rows"
    return settings


def yaml_of(settings: Mapping[str, Any]) -> str:
    """In the order that they are in."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _number(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    """1e-05 is text in YAML 1.1; 1.0e-05 is a number, for our loader and everybody else's."""
    text = repr(value)
    mantissa, exponent, power = text.partition("e")
    text = f"{mantissa}.0e{power}" if exponent and "." not in mantissa else text
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _number)


def _settings(config: TrainerConfig) -> dict[str, Any]:
    """Without the sections that the trainer has not."""
    unread = {name for name, readers in READERS.items() if config.type in DEFAULTS and config.type not in readers}
    return {name: setting for name, setting in as_data(config).items() if name not in unread}


def as_yaml(config: TrainerConfig) -> str:
    return yaml_of(_settings(config))


def as_python(config: TrainerConfig) -> str:
    kind = type(config)
    lines = [f"{name}={value!r}," for name, value in _settings(config).items()]
    body = "\n".join(f"    {line}" for line in lines)
    return f"from {kind.__module__} import {kind.__qualname__}\n\nconfig = {kind.__qualname__}(\n{body}\n)\n"
