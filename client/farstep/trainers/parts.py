"""Which parts go with a trainer: a class says it by the type hints of its attributes, and the configuration is held to
it.

    class Careful(SFTTrainer):
        scheduler_factory: LinearSchedule | CosineSchedule      # others are refused

The names of ArcticTraining's factories are understood, and their older spelling (`scheduler_factory_type = …`).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from farstep.trainers.errors import ConfigError

if TYPE_CHECKING:
    from farstep.trainers.config import TrainerConfig


def _scheduler(config: TrainerConfig) -> Sequence[str]:
    return [config.scheduler.name]


def _engines(config: TrainerConfig) -> Sequence[str]:
    return [each.type for each in config.checkpoint if each.enabled]


def _sources(config: TrainerConfig) -> Sequence[str]:
    return [str(source.type) for source in (*config.data.sources, *config.data.eval_sources)]


def _optimizer(config: TrainerConfig) -> Sequence[str]:
    return [config.optimizer.name]


# A part's attribute, its setting, and what the configuration chose.
_PARTS: Mapping[str, tuple[str, Callable[[TrainerConfig], Sequence[str]]]] = {
    "scheduler_factory": ("scheduler.name", _scheduler),
    "checkpoint_engine": ("checkpoint.type", _engines),
    "data_factory": ("data.sources.type", _sources),
    "optimizer_factory": ("optimizer.name", _optimizer),
}


def check_parts(trainer: type, config: TrainerConfig) -> None:
    """Refuses a choice that the trainer does not declare; `skip_validation` in the configuration lets it through.

    Raises:
        ConfigError: naming the setting and what is allowed.
    """
    hints = _hints(trainer)
    for attribute, (setting, chosen) in _PARTS.items():
        declared = _declared(trainer, attribute, hints)
        if not declared:
            continue
        allowed = [name for each in declared if (name := getattr(each, "name", ""))]
        for name in chosen(config):
            if name not in allowed:
                raise ConfigError(
                    f"{name!r} does not go with the trainer {trainer.__name__}",
                    field=setting,
                    hint=f"it declares {', '.join(allowed)}; skip_validation lets it through",
                )


def declared_config(trainer: type) -> type[TrainerConfig] | None:
    """The configuration's class that this class itself declares: `config_type = …`, or the hint `config: …`."""
    found = vars(trainer).get("config_type")
    hint = vars(trainer).get("__annotations__", {}).get("config")
    if found is None and hint is not None:
        holder = type(trainer.__name__, (), {"__annotations__": {"config": hint}, "__module__": trainer.__module__})
        found = typing.get_type_hints(holder)["config"]
    return found


def _hints(trainer: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(trainer.__mro__):
        own = {name: hint for name, hint in vars(base).get("__annotations__", {}).items() if name in _PARTS}
        if own:  # the others need not be resolvable
            holder = type(base.__name__, (), {"__annotations__": own, "__module__": base.__module__})
            found |= typing.get_type_hints(holder)
    return found


def _declared(trainer: type, attribute: str, hints: Mapping[str, Any]) -> list[Any]:
    old = getattr(trainer, f"{attribute}_type", None)
    hint = old if old is not None else hints.get(attribute)
    if hint is None:
        return []
    if isinstance(hint, list | tuple):
        return list(hint)
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is Union
    return list(typing.get_args(hint)) if is_union else [hint]
