"""Puts settings where they belong: other systems' names, `camelCase` and short forms become ours.

Pure, and no judge of values: what it does not know it leaves in place, for the model to refuse. A setting that is given
twice, under two names, is refused unless both say the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from farstep.trainers.config.aliases import NEUTRAL, SECTIONS, TOP, WITHOUT_MEANING, Alias
from farstep.trainers.errors import ConfigError

_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")


class IgnoredSettingWarning(UserWarning):
    """A setting of another system that has no meaning here was left out."""


def snake_case(name: str) -> str:
    """`numTrainEpochs` as `num_train_epochs`, `loadIn4bit` as `load_in_4bit`."""
    return re.sub(r"(?<=[a-z])(\d)", r"_\1", _HUMP.sub(r"_\1", name)).lower() if _HUMP.search(name) else name


def normalized(settings: Mapping[str, Any], *, own: frozenset[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings under our names, and for each place that was written otherwise what was written.

    Args:
        own: names at the top that are the model's, and never an alias.

    Raises:
        ConfigError: one setting with two values.
    """
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    moved: list[tuple[str, str, Any, Alias]] = []
    for key, value in settings.items():
        name = key if key in own else snake_case(key)
        if name in own:
            _put(values, name, _long_form(name, value), key, written)
        elif name in TOP:
            moved.append((key, name, value, TOP[name]))
        elif not _ignored(name, value):
            values[key] = value
    for key, _, value, alias in moved:
        for place, setting in _places(alias, value).items():
            _put(values, place, _long_form(place, setting), key, written)
    for section in SECTIONS:
        _normalize_section(values, section, written)
    _settle(values, settings, written)
    return values, written


def _places(alias: Alias, value: Any) -> Mapping[str, Any]:
    return {alias: value} if isinstance(alias, str) else alias(value)


def _put(values: dict[str, Any], place: str, value: Any, key: str, written: dict[str, str]) -> None:
    *sections, name = place.split(".")
    holder = values
    for section in sections:
        inner = _long_form(section, holder.get(section, {}))
        if not isinstance(inner, Mapping):
            raise ConfigError(f"cannot stand beside {section} of type {type(inner).__name__}", field=key)
        holder[section] = holder = dict(inner)
    present = holder.get(name)
    if isinstance(present, Mapping) and isinstance(value, Mapping):
        value = {**present, **value}
    elif name in holder and name == "trackers":
        value = [*present, *value] if isinstance(present, list | tuple) else value
    elif name in holder and present != value:
        raise ConfigError(f"is given twice, as {written.get(place, place)} and as {key}", field=place, hint="give one")
    holder[name] = value
    if key != place:
        written[place] = key


def _long_form(place: str, value: Any) -> Any:
    """Short forms of sections."""
    match place.rpartition(".")[2], value:
        case "model", str():
            return {"base": value}
        case "lora", int() | str() if not isinstance(value, bool):
            return {"r": value}
        case (("optimizer" | "scheduler"), str()):
            return {"name": value}
        case "data", str() | list() | tuple():
            return {"sources": value}
        case "checkpoint", Mapping():
            return [dict(value)]
        case "trackers", str() | Mapping():
            return [_tracker(value)]
        case "trackers", list() | tuple():
            return [_tracker(one) for one in value]
        case "code", str():
            return (value,)
        case _:
            return value


def _tracker(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _normalize_section(values: dict[str, Any], section: str, written: dict[str, str]) -> None:
    """Renames within one section. It may move settings to another one."""
    holder: Any = values
    for name in section.split("."):
        holder = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(holder, Mapping):
        return
    aliases = SECTIONS[section]
    kept: dict[str, Any] = {}
    moved = []
    for key, value in holder.items():
        name = snake_case(key) if isinstance(key, str) else key
        if name in aliases:
            moved.append((f"{section}.{key}", value, aliases[name]))
        elif not _ignored(f"{section}.{name}", value):
            kept[name] = value
    parent: Any = values
    *above, last = section.split(".")
    for name in above:
        parent = parent[name]
    parent[last] = kept
    for key, value, alias in moved:
        for place, setting in _places(alias, value).items():
            _put(values, place, _long_form(place, setting), key, written)


def _settle(values: dict[str, Any], settings: Mapping[str, Any], written: dict[str, str]) -> None:
    """What depends on two settings at once."""
    if "dataset_split" in values:
        _split_of_dataset(values, values.pop("dataset_split"))
    rl = values.get("rl")
    if isinstance(rl, dict) and "epsilon" in rl:  # TRL's, which is of both sides unless epsilon_high is given
        epsilon = rl.pop("epsilon")
        for side in ("clip_low", *(["clip_high"] if "clip_high" not in rl else [])):
            _put(values, f"rl.{side}", epsilon, "epsilon", written)
    optimizer = values.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.keys() & {"beta1", "beta2"} and "betas" not in optimizer:
        optimizer["betas"] = (optimizer.pop("beta1", 0.9), optimizer.pop("beta2", 0.95))
    if {"micro_batch_size", "microBatchSize"} & settings.keys() and "batch_size" not in values:
        from farstep.trainers.config.numbers import whole

        micro, passes = whole(values["mini_bs"]), whole(values.get("gradient_accumulation_steps") or 1)
        if isinstance(micro, int) and isinstance(passes, int):
            values["batch_size"] = micro * passes


def _split_of_dataset(values: dict[str, Any], split: str) -> None:
    from farstep.trainers.config.sources import spelled_out

    data = values.get("data")
    source = spelled_out(data.get("sources")) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(source, Mapping) or source.get("type") != "huggingface":
        raise ConfigError("needs a dataset of the Hugging Face hub", field="dataset_split")
    data["sources"] = {**source, "split": split}


def _ignored(place: str, value: Any) -> bool:
    if place not in WITHOUT_MEANING:
        return False
    if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL):
        warnings.warn(f"{place} is left out: {WITHOUT_MEANING[place]}", IgnoredSettingWarning, stacklevel=2)
    return True
