"""Operators: the parts of an agent that have something to tune in them, and the trainer that tunes it.

A name is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from farstep._lazy import lazy

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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "farstep.trainers.operators.agent": "OperatorAgent",
        "farstep.trainers.operators.cases": "Case",
        "farstep.trainers.operators.checkpoint_files": "CheckpointFiles",
        "farstep.trainers.operators.config": "OperatorConfig",
        "farstep.trainers.operators.instruction": "InstructionOptimizer",
        "farstep.trainers.operators.llm_call": "LLMCallOperator",
        "farstep.trainers.operators.memory_call": "MemoryCallOperator",
        "farstep.trainers.operators.operator": "Operator",
        "farstep.trainers.operators.optimizer": "Change OperatorOptimizer",
        "farstep.trainers.operators.tool_call": "ToolCallOperator",
        "farstep.trainers.operators.tool_descriptions": "ToolOptimizer",
        "farstep.trainers.operators.traces": "Trace Traces",
        "farstep.trainers.operators.trainer": "OperatorTrainer",
        "farstep.trainers.operators.tunable": "TunableSpec",
    },
)
