"""Train LoRA adapters step by step, from a laptop, on GPUs that are somewhere else.

    service = farstep.ServiceClient()
    trainer = service.create_lora_training_client("farstep/tiny", rank=8)
    trainer.forward_backward(data).result()
    trainer.optim_step(farstep.AdamParams(learning_rate=1e-3)).result()
    sampler = trainer.save_weights_and_get_sampling_client()
    sampler.sample(prompt).result()

Everything public is here; importing it loads neither torch nor transformers nor wandb.
"""

from farstep.checkpoints import ArchiveFile, Checkpoint, CheckpointArchive, ImportedAdapter
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
    "Datum",
    "EncodedTextChunk",
    "FarstepError",
    "ForwardBackwardOutput",
    "Future",
    "ImageChunk",
    "ImportedAdapter",
    "InvalidInputError",
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
    "ProvisioningError",
    "PublishTimeoutError",
    "QueuedOperation",
    "RateLimitError",
    "RemoteOpError",
    "ResultTimeout",
    "RunInfo",
    "SampleResult",
    "SampledSequence",
    "SampledToken",
    "SamplingClient",
    "SamplingParams",
    "SaveWeightsResponse",
    "ServerCapabilities",
    "ServerError",
    "ServerShutdownError",
    "ServiceClient",
    "StorageFullError",
    "SupportedModel",
    "TensorData",
    "TokenStream",
    "TrainingClient",
    "TrainingInfo",
    "TransportError",
    "UnknownRequestError",
    "WandbConfig",
]
