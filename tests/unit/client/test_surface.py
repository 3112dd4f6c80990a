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

WITHOUT_TWIN = {
    "stream",
    "health",
    "ensure_ready",
    "get_tokenizer",
    "get_openai_endpoint",
    "get_info",
    "close",
    "aclose",
    "local",
    "run_id",
}
CLIENTS = [farstep.ServiceClient, farstep.ControlClient, farstep.TrainingClient, farstep.SamplingClient]

OF_CONTROL = """
    list_runs get_run delete_run deactivate_run list_sessions list_samplers get_sampler stop_sampler get_usage
    list_projects get_project create_project set_quotas delete_project list_keys create_key revoke_key read_log
    list_checkpoints get_checkpoint_archive_url get_checkpoint delete_checkpoint set_checkpoint_ttl export_checkpoint
    push_to_hub
"""

CALLS = {
    farstep.ControlClient: OF_CONTROL,
    farstep.ServiceClient: OF_CONTROL
    + """
        create_lora_training_client create_training_client_from_state
        create_training_client_from_state_with_optimizer create_sampling_client get_server_capabilities
        import_adapter resume_run
    """,
    farstep.TrainingClient: """
        forward_backward forward forward_backward_custom optim_step save_state save_weights_for_sampler
        save_weights_and_get_sampling_client fresh_sampling_client load_state load_state_with_optimizer
        create_sampling_client
        list_checkpoints get_checkpoint_archive_url reset queue trace unfetched future
    """,
    farstep.SamplingClient: "sample compute_logprobs compute_logprobs_batch get_base_model",
}


def test_the_public_names() -> None:
    assert farstep.__all__ == PUBLIC == sorted(PUBLIC)
    assert all(hasattr(farstep, name) for name in PUBLIC)


def test_names_are_loaded_when_they_are_used() -> None:
    assert sorted(farstep._HOME_OF) == PUBLIC
    assert set(PUBLIC) <= set(dir(farstep))
    code = (
        "import sys, farstep; before = len([name for name in sys.modules if name.startswith('farstep.')])\n"
        "print(before, farstep.errors.NotFoundError is farstep.NotFoundError)\n"
        "print(farstep.results.RunInfo is farstep.RunInfo)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.split() == ["0", "True", "True"]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        farstep.Nothing  # noqa: B018


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
    """All that is public, in seconds of the processor. Best of three, because the machine may be busy."""
    code = """
import json, sys, time
began_at = time.process_time()
from farstep import *
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
