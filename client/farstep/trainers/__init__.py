"""Trainers: a loop that works as it is, and can be opened up piece by piece. On nothing but the public SDK.

A name is loaded when it is first used; none loads torch, transformers or datasets.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farstep.trainers.errors import (
        ConfigError,
        DataError,
        RegistryError,
        RoleError,
        RolloutError,
        TrainerError,
    )
    from farstep.trainers.registry import Registered
    from farstep.trainers.sequence import TrainSequence

__all__ = [
    "ConfigError",
    "DataError",
    "Registered",
    "RegistryError",
    "RoleError",
    "RolloutError",
    "TrainSequence",
    "TrainerError",
]

_NAMES_OF = {
    "farstep.trainers.errors": "ConfigError DataError RegistryError RoleError RolloutError TrainerError",
    "farstep.trainers.registry": "Registered",
    "farstep.trainers.sequence": "TrainSequence",
}
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        found = globals()[name] = getattr(import_module(home), name)
        return found
    raise AttributeError(f"module 'farstep.trainers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
