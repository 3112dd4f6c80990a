"""What is public: names, twins, weight."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import typing

import pytest

import farstep

PUBLIC = [
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

WITHOUT_TWIN = {"stream", "health", "ensure_ready", "get_tokenizer", "get_info", "close", "aclose", "local", "run_id"}
CLIENTS = [farstep.ServiceClient, farstep.TrainingClient, farstep.SamplingClient]

CALLS = {
    farstep.ServiceClient: """
        create_lora_training_client create_training_client_from_state
        create_training_client_from_state_with_optimizer create_sampling_client get_server_capabilities
        list_checkpoints get_checkpoint_archive_url get_checkpoint delete_checkpoint set_checkpoint_ttl
        export_checkpoint import_adapter push_to_hub list_runs get_run resume_run delete_run
    """,
    farstep.TrainingClient: """
        forward_backward forward forward_backward_custom optim_step save_state save_weights_for_sampler
        save_weights_and_get_sampling_client load_state load_state_with_optimizer create_sampling_client
        list_checkpoints get_checkpoint_archive_url reset queue trace unfetched future
    """,
    farstep.SamplingClient: "sample compute_logprobs compute_logprobs_batch get_base_model",
}


def test_the_public_names() -> None:
    assert farstep.__all__ == PUBLIC == sorted(PUBLIC)
    assert all(hasattr(farstep, name) for name in PUBLIC)


@pytest.mark.parametrize("kind", CLIENTS)
def test_every_long_running_call_has_its_twin(kind: type) -> None:
    methods = {
        name
        for name, _ in inspect.getmembers(kind, inspect.isroutine)
        if not name.startswith("_") and name not in WITHOUT_TWIN
    }
    sync = {name for name in methods if not name.endswith("_async")}
    assert sync == set(CALLS[kind].split())
    assert methods - sync == {f"{name}_async" for name in sync}
    for name in sync:
        call, twin = getattr(kind, name), getattr(kind, f"{name}_async")
        assert inspect.signature(call) == inspect.signature(twin)
        assert call.__doc__
        assert (call.__name__, twin.__name__) == (name, f"{name}_async")
        assert inspect.iscoroutinefunction(twin)
        assert not inspect.iscoroutinefunction(call)


def test_defaults_are_those_of_the_contract() -> None:
    parameters = inspect.signature(farstep.ServiceClient.create_lora_training_client).parameters
    defaults = {name: parameter.default for name, parameter in list(parameters.items())[2:]}
    assert defaults == {
        "rank": 32,
        "alpha": None,
        "target_modules": None,
        "dropout": 0.0,
        "train_attn": True,
        "train_mlp": True,
        "train_unembed": False,
        "use_rslora": False,
        "use_dora": False,
        "value_head": False,
        "seed": None,
        "max_seq_len": None,
        "replicas": 1,
        "with_sampler": True,
        "sampler_replicas": 1,
        "name": None,
        "wandb_config": None,
        "user_metadata": None,
        "timeout": 600.0,
        "ready_timeout": 3600.0,
    }


def test_errors_form_one_tree() -> None:
    kinds = [getattr(farstep, name) for name in PUBLIC if name.endswith("Error") or name == "ResultTimeout"]
    assert all(issubclass(kind, farstep.FarstepError) for kind in kinds)
    assert issubclass(farstep.InvalidInputError, ValueError)
    assert issubclass(farstep.ResultTimeout, TimeoutError)
    assert issubclass(farstep.PolicyNotReadyError, farstep.RemoteOpError)


def test_type_hints_resolve() -> None:
    for kind in CLIENTS:
        for name in CALLS[kind].split():
            typing.get_type_hints(getattr(kind, name))


def test_importing_is_light() -> None:
    """By the processor's time and best of three, because the machine may be busy."""
    code = """
import json, sys, time
began_at = time.process_time()
import farstep
took_s = time.process_time() - began_at
heavy = [name for name in ("torch", "transformers", "wandb", "rich", "httpx", "starlette") if name in sys.modules]
print(json.dumps([took_s, heavy]))
"""
    times = []
    for _ in range(3):
        took_s, heavy = json.loads(subprocess.check_output([sys.executable, "-c", code]))
        assert heavy == []
        times.append(took_s)
    assert min(times) < 0.5
