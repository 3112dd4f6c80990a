"""Evolution: rounds of making data, training and evaluating, until it is good enough.

A name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farstep.trainers.evolution.config import EvolutionConfig
    from farstep.trainers.evolution.driver import Evolution, EvolutionState
    from farstep.trainers.evolution.result import EpochRecord, EvolutionError, EvolutionResult
    from farstep.trainers.evolution.strategy import EvolutionStrategy, Round, Trained, TrainerStrategy

__all__ = [
    "EpochRecord",
    "Evolution",
    "EvolutionConfig",
    "EvolutionError",
    "EvolutionResult",
    "EvolutionState",
    "EvolutionStrategy",
    "Round",
    "Trained",
    "TrainerStrategy",
]

_HERE = "farstep.trainers.evolution"
_NAMES_OF = {
    f"{_HERE}.config": "EvolutionConfig",
    f"{_HERE}.driver": "Evolution EvolutionState",
    f"{_HERE}.result": "EpochRecord EvolutionError EvolutionResult",
    f"{_HERE}.strategy": "EvolutionStrategy Round Trained TrainerStrategy",
}
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        found = globals()[name] = getattr(import_module(home), name)
        return found
    raise AttributeError(f"module 'farstep.trainers.evolution' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
