"""The configuration of a trainer. It reads no data and asks no server; it needs pydantic and PyYAML, and no torch."""

from farstep.errors import MissingExtraError

try:
    import pydantic  # noqa: F401
    import yaml  # noqa: F401
except ImportError as error:
    raise MissingExtraError("trainers need pydantic and PyYAML", hint="pip install 'farstep[trainers]'") from error

from farstep.trainers.config.algorithms import CriticConfig, LossMaskConfig, PreferenceConfig, RLConfig, SamplingConfig
from farstep.trainers.config.allowed import ANYTHING, NOTHING, Allowed
from farstep.trainers.config.checkpoints import CheckpointConfig
from farstep.trainers.config.data import DataConfig
from farstep.trainers.config.load import load_config
from farstep.trainers.config.model import LoraConfig, ModelConfig
from farstep.trainers.config.normal import IgnoredSettingWarning
from farstep.trainers.config.optimization import OptimizerConfig, SchedulerConfig
from farstep.trainers.config.sources import (
    BlobConfig,
    CallableConfig,
    FileConfig,
    HuggingFaceConfig,
    RowsConfig,
    SourceConfig,
)
from farstep.trainers.config.tracking import EarlyStoppingConfig, TrackerConfig
from farstep.trainers.config.trainer import TrainerConfig
from farstep.trainers.errors import ConfigError

__all__ = [
    "ANYTHING",
    "NOTHING",
    "Allowed",
    "BlobConfig",
    "CallableConfig",
    "CheckpointConfig",
    "ConfigError",
    "CriticConfig",
    "DataConfig",
    "EarlyStoppingConfig",
    "FileConfig",
    "HuggingFaceConfig",
    "IgnoredSettingWarning",
    "LoraConfig",
    "LossMaskConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PreferenceConfig",
    "RLConfig",
    "RowsConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "SourceConfig",
    "TrackerConfig",
    "TrainerConfig",
    "load_config",
]
