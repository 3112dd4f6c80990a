"""What trainers cost before they are used: no I/O, no torch."""

import subprocess
import sys
import textwrap

import farstep.trainers

PROGRAM = """
    import socket, sys

    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    socket.socket.connect = socket.socket.connect_ex = refuse
    import farstep.trainers as trainers

    for name in trainers.__all__:
        getattr(trainers, name)
    rows = [{"prompt": "a", "response": "b"}]
    for name in trainers.Trainer.names():
        if name in ("sft", "causal", "dpo", "ipo"):
            trainers.Trainer.get(name)({"name": "run", "model": "farstep/tiny"})
    trainers.SFTTrainer({"name": "run", "model": "farstep/tiny"}, train_data=rows).validate()
    print([name for name in ("torch", "transformers", "datasets", "wandb", "peft") if name in sys.modules])
"""


def test_making_and_validating_a_trainer_uses_no_network_and_loads_nothing_heavy(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_public_names():
    assert farstep.trainers.__all__ == [
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
