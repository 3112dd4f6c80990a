"""Operators: the parts of an agent that have something to tune in them, and the trainer that tunes it.

A name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farstep.trainers.operators.agent import OperatorAgent
    from farstep.trainers.operators.cases import Case
    from farstep.trainers.operators.checkpoint_files import CheckpointFiles
    from farstep.trainers.operators.config import OperatorConfig
    from farstep.trainers.operators.instruction import InstructionOptimizer
    from farstep.trainers.operators.llm_call import LLMCallOperator
    from farstep.trainers.operators.memory_call import MemoryCallOperator
    from farstep.trainers.operators.operator import Operator
    from farstep.trainers.operators.optimizer import Change, OperatorOptimizer
    from farstep.trainers.operators.tool_call import ToolCallOperator
    from farstep.trainers.operators.tool_descriptions import ToolOptimizer
    from farstep.trainers.operators.traces import Trace, Traces
    from farstep.trainers.operators.trainer import OperatorTrainer
    from farstep.trainers.operators.tunable import TunableSpec

__all__ = [
    "Case",
    "Change",
    "CheckpointFiles",
    "InstructionOptimizer",
    "LLMCallOperator",
    "MemoryCallOperator",
    "Operator",
    "OperatorAgent",
    "OperatorConfig",
    "OperatorOptimizer",
    "OperatorTrainer",
    "ToolCallOperator",
    "ToolOptimizer",
    "Trace",
    "Traces",
    "TunableSpec",
]

_HERE = "farstep.trainers.operators"
_NAMES_OF = {
    f"{_HERE}.agent": "OperatorAgent",
    f"{_HERE}.cases": "Case",
    f"{_HERE}.checkpoint_files": "CheckpointFiles",
    f"{_HERE}.config": "OperatorConfig",
    f"{_HERE}.instruction": "InstructionOptimizer",
    f"{_HERE}.llm_call": "LLMCallOperator",
    f"{_HERE}.memory_call": "MemoryCallOperator",
    f"{_HERE}.operator": "Operator",
    f"{_HERE}.optimizer": "Change OperatorOptimizer",
    f"{_HERE}.tool_call": "ToolCallOperator",
    f"{_HERE}.tool_descriptions": "ToolOptimizer",
    f"{_HERE}.traces": "Trace Traces",
    f"{_HERE}.trainer": "OperatorTrainer",
    f"{_HERE}.tunable": "TunableSpec",
}
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        found = globals()[name] = getattr(import_module(home), name)
        return found
    raise AttributeError(f"module 'farstep.trainers.operators' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
