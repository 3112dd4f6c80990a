"""Evolution: rounds of making data, training and evaluating, until it is good enough.

A name is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from farstep._lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "farstep.trainers.evolution.config": "EvolutionConfig",
        "farstep.trainers.evolution.driver": "Evolution EvolutionState",
        "farstep.trainers.evolution.result": "EpochRecord EvolutionError EvolutionResult",
        "farstep.trainers.evolution.strategy": "EvolutionStrategy Round Trained TrainerStrategy",
    },
)
