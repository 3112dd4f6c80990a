"""Train LoRA adapters step by step, from a laptop, on GPUs that are somewhere else.

    service = farstep.ServiceClient()
    trainer = service.create_lora_training_client("farstep/tiny", rank=8)
    trainer.forward_backward(data).result()
    trainer.optim_step(farstep.AdamParams(learning_rate=1e-3)).result()
    sampler = trainer.save_weights_and_get_sampling_client()
    sampler.sample(prompt).result()

Everything public is here. A name is loaded when it is first used, so that a command that needs none of them starts at
once; none loads torch, transformers or wandb.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farstep.checkpoints import ArchiveFile, Checkpoint, CheckpointArchive, ImportedAdapter
    from farstep.control import ControlClient
    from farstep.errors import (
        AuthenticationError,
        ClientClosedError,
        ConflictError,
        FarstepError,
        InvalidInputError,
        MissingExtraError,
        NotFoundError,
        PayloadTooLargeError,
        PermissionDeniedError,
        PolicyNotReadyError,
        ProvisioningError,
        PublishTimeoutError,
        RateLimitError,
        RemoteOpError,
        ResultTimeout,
        ServerError,
        ServerShutdownError,
        StorageFullError,
        TransportError,
        UnknownRequestError,
    )
    from farstep.future import Future
    from farstep.records import CreatedKey, KeyInfo, ProjectInfo, Quotas, SamplerInfo, SessionInfo, Usage
    from farstep.sampling import SamplingClient
    from farstep.service import ServiceClient
    from farstep.stream import TokenStream
    from farstep.training import TrainingClient
    from farstep.types import (
        AdamParams,
        Datum,
        EncodedTextChunk,
        ForwardBackwardOutput,
        ImageChunk,
        LoadWeightsResponse,
        LoraConfig,
        ModelInput,
        OperationTrace,
        OptimStepResponse,
        QueuedOperation,
        RunInfo,
        SampledSequence,
        SampledToken,
        SampleResult,
        SamplingParams,
        SaveWeightsResponse,
        ServerCapabilities,
        SupportedModel,
        TensorData,
        TrainingInfo,
        WandbConfig,
    )

__all__ = [
    "AdamParams",
    "ArchiveFile",
    "AuthenticationError",
    "Checkpoint",
    "CheckpointArchive",
    "ClientClosedError",
    "ConflictError",
    "ControlClient",
    "CreatedKey",
    "Datum",
    "EncodedTextChunk",
    "FarstepError",
    "ForwardBackwardOutput",
    "Future",
    "ImageChunk",
    "ImportedAdapter",
    "InvalidInputError",
    "KeyInfo",
    "LoadWeightsResponse",
    "LoraConfig",
    "MissingExtraError",
    "ModelInput",
    "NotFoundError",
    "OperationTrace",
    "OptimStepResponse",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PolicyNotReadyError",
    "ProjectInfo",
    "ProvisioningError",
    "PublishTimeoutError",
    "QueuedOperation",
    "Quotas",
    "RateLimitError",
    "RemoteOpError",
    "ResultTimeout",
    "RunInfo",
    "SampleResult",
    "SampledSequence",
    "SampledToken",
    "SamplerInfo",
    "SamplingClient",
    "SamplingParams",
    "SaveWeightsResponse",
    "ServerCapabilities",
    "ServerError",
    "ServerShutdownError",
    "ServiceClient",
    "SessionInfo",
    "StorageFullError",
    "SupportedModel",
    "TensorData",
    "TokenStream",
    "TrainingClient",
    "TrainingInfo",
    "TransportError",
    "UnknownRequestError",
    "Usage",
    "WandbConfig",
]

_NAMES_OF = {
    "farstep.checkpoints": "ArchiveFile Checkpoint CheckpointArchive ImportedAdapter",
    "farstep.control": "ControlClient",
    "farstep.errors": (
        "AuthenticationError ClientClosedError ConflictError FarstepError InvalidInputError MissingExtraError "
        "NotFoundError PayloadTooLargeError PermissionDeniedError PolicyNotReadyError ProvisioningError "
        "PublishTimeoutError RateLimitError RemoteOpError ResultTimeout ServerError ServerShutdownError "
        "StorageFullError TransportError UnknownRequestError"
    ),
    "farstep.future": "Future",
    "farstep.records": "CreatedKey KeyInfo ProjectInfo Quotas SamplerInfo SessionInfo Usage",
    "farstep.sampling": "SamplingClient",
    "farstep.service": "ServiceClient",
    "farstep.stream": "TokenStream",
    "farstep.training": "TrainingClient",
    "farstep.types": (
        "AdamParams Datum EncodedTextChunk ForwardBackwardOutput ImageChunk LoadWeightsResponse LoraConfig "
        "ModelInput OperationTrace OptimStepResponse QueuedOperation RunInfo SampledSequence SampledToken "
        "SampleResult SamplingParams SaveWeightsResponse ServerCapabilities SupportedModel TensorData "
        "TrainingInfo WandbConfig"
    ),
}
_HOME_OF = {name: home for home, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if home := _HOME_OF.get(name):
        found = globals()[name] = getattr(import_module(home), name)
        return found
    if f"farstep.{name}" in _NAMES_OF or name == "results":
        return import_module(f"farstep.{name}")
    raise AttributeError(f"module 'farstep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
