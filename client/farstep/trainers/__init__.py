"""Trainers: a loop that works as it is, and can be opened up piece by piece. On nothing but the public SDK.

    from farstep.trainers import SFTTrainer

    rows = [{"prompt": "2+2?", "response": "4"}]
    print(SFTTrainer({"name": "first", "model": "farstep/tiny"}, train_data=rows).fit().loss)

A name is loaded when it is first used; none loads torch, transformers or datasets.
"""

from typing import TYPE_CHECKING

from farstep._lazy import lazy

if TYPE_CHECKING:
    from farstep.trainers.callbacks import Callbacks
    from farstep.trainers.causal import CausalTrainer
    from farstep.trainers.checkpoints import CheckpointEngine
    from farstep.trainers.config import TrainerConfig, load_config
    from farstep.trainers.dpo import DPOTrainer, IPOTrainer
    from farstep.trainers.errors import (
        ConfigError,
        DataError,
        MissingRoleCapability,
        RegistryError,
        RoleError,
        RolloutError,
        TrainerError,
    )
    from farstep.trainers.lifecycle import TrainerState
    from farstep.trainers.metrics import TrainMetrics
    from farstep.trainers.operators.trainer import OperatorTrainer
    from farstep.trainers.registry import Registered
    from farstep.trainers.rl.grpo import GRPOTrainer
    from farstep.trainers.rl.gspo import GSPOTrainer
    from farstep.trainers.rl.ppo import PPOTrainer
    from farstep.trainers.rl.trainer import RLTrainer
    from farstep.trainers.role import Role
    from farstep.trainers.schedules import Schedule
    from farstep.trainers.sequence import TrainSequence
    from farstep.trainers.sft import SFTTrainer
    from farstep.trainers.trackers.base import Tracker
    from farstep.trainers.trainer import Trainer

__all__ = [
    "Callbacks",
    "CausalTrainer",
    "CheckpointEngine",
    "ConfigError",
    "DPOTrainer",
    "DataError",
    "GRPOTrainer",
    "GSPOTrainer",
    "IPOTrainer",
    "MissingRoleCapability",
    "OperatorTrainer",
    "PPOTrainer",
    "RLTrainer",
    "Registered",
    "RegistryError",
    "Role",
    "RoleError",
    "RolloutError",
    "SFTTrainer",
    "Schedule",
    "Tracker",
    "TrainMetrics",
    "TrainSequence",
    "Trainer",
    "TrainerConfig",
    "TrainerError",
    "TrainerState",
    "load_config",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "farstep.trainers.callbacks": "Callbacks",
        "farstep.trainers.causal": "CausalTrainer",
        "farstep.trainers.checkpoints": "CheckpointEngine",
        "farstep.trainers.config": "TrainerConfig load_config",
        "farstep.trainers.dpo": "DPOTrainer IPOTrainer",
        "farstep.trainers.errors": (
            "ConfigError DataError MissingRoleCapability RegistryError RoleError RolloutError TrainerError"
        ),
        "farstep.trainers.lifecycle": "TrainerState",
        "farstep.trainers.metrics": "TrainMetrics",
        "farstep.trainers.operators.trainer": "OperatorTrainer",
        "farstep.trainers.registry": "Registered",
        "farstep.trainers.rl.grpo": "GRPOTrainer",
        "farstep.trainers.rl.gspo": "GSPOTrainer",
        "farstep.trainers.rl.ppo": "PPOTrainer",
        "farstep.trainers.rl.trainer": "RLTrainer",
        "farstep.trainers.role": "Role",
        "farstep.trainers.schedules": "Schedule",
        "farstep.trainers.sequence": "TrainSequence",
        "farstep.trainers.sft": "SFTTrainer",
        "farstep.trainers.trackers.base": "Tracker",
        "farstep.trainers.trainer": "Trainer",
    },
)
