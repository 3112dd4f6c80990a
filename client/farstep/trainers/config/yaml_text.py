"""YAML as a configuration is written: a mapping, every key once. No tags, no Python objects."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from farstep.trainers.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses what SafeLoader takes in silence: the same key twice in one mapping."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    first: dict[Hashable, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError(f"the key {key!r} in line {line} is no text: put it in quotes")
        if key in first:
            raise ConfigError(f"in line {line} again, first in line {first[key]}", field=key, hint="leave one of them")
        first[key] = line
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def mapping_from_yaml(text: str, *, name: str = "the configuration") -> dict[str, Any]:
    """
    Raises:
        ConfigError: no YAML, a key twice (with both lines), or no mapping. `name` says in the message of what.
    """
    try:
        # A SafeLoader with one constructor of its own.
        value = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    if value is None:
        raise ConfigError(f"{name} is empty: it has no settings", hint="`farstep init` writes one to begin with")
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a mapping of settings, not {type(value).__name__}")
    return value
