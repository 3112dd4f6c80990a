"""Which parts go with a trainer."""

import pytest

from farstep.trainers import ConfigError, SFTTrainer, TrainerConfig
from farstep.trainers.checkpoints import StateEngine
from farstep.trainers.schedules import CosineSchedule, LinearSchedule

CONFIG = {"name": "run", "model": "farstep/tiny"}


class Careful(SFTTrainer):
    scheduler_factory: LinearSchedule | CosineSchedule
    checkpoint_engine: StateEngine


class Old(SFTTrainer):
    scheduler_factory_type = LinearSchedule


@pytest.mark.parametrize("trainer", [Careful, Old])
def test_a_part_that_is_not_declared_is_refused(trainer):
    trainer({**CONFIG, "scheduler": "linear"}).check_config()
    refused = {**CONFIG, "scheduler": "constant"}
    with pytest.raises(
        ConfigError, match=r"scheduler\.name: 'constant' does not go with the trainer .*it declares linear"
    ):
        trainer(refused).check_config()
    trainer({**refused, "skip_validation": True}).check_config()


def test_a_subclass_inherits_the_declaration():
    class Child(Careful):
        pass

    with pytest.raises(ConfigError, match=r"checkpoint\.type: 'export'.*it declares state"):
        Child({**CONFIG, "scheduler": "cosine", "checkpoint": {"type": "export"}}).check_config()


class MyConfig(TrainerConfig):
    spice: float = 0.5


class Spicy(SFTTrainer):
    config_class = MyConfig


class ByType(SFTTrainer):
    config_type = MyConfig


class ByHint(SFTTrainer):
    config: MyConfig


@pytest.mark.parametrize("trainer", [Spicy, ByType, ByHint])
def test_a_configuration_of_ones_own(trainer):
    assert trainer({**CONFIG, "spice": 2.0}).config.spice == 2.0
    with pytest.raises(ConfigError, match="spice"):
        SFTTrainer({**CONFIG, "spice": 2.0})
