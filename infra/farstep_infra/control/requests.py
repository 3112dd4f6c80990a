"""Which provisioning requests are refused, and with which field: decided on the message alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, check_run_id
from farstep_proto.v1 import control_pb2
from farstep_proto.validation import resolve_lora

MAX_REPLICAS = 64
MAX_TTL_SECONDS = 100 * 365 * 24 * 3600
_MAX_TEXT = 200
_MAX_RUN_IDS = 10_000
_MAX_METADATA = 64
_MAX_METADATA_TEXT = 4096
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")


def check_session(request: control_pb2.CreateSessionRequest) -> None:
    """Raises:
    InvalidInput: naming the field.
    """
    check_metadata(request.user_metadata)
    _check_text(request.display_name, field="display_name")
    if len(request.tags) > _MAX_METADATA:
        raise InvalidInput(f"{len(request.tags)} tags, at most {_MAX_METADATA}", field="tags")
    for tag in request.tags:
        _check_text(tag, field="tags")


def check_ending(detail: str) -> None:
    """What a client says of the end of its session.

    Raises:
        InvalidInput: naming the field.
    """
    if len(detail) > _MAX_METADATA_TEXT or "\0" in detail:
        raise InvalidInput(f"at most {_MAX_METADATA_TEXT} characters", field="detail")


def check_heartbeat(request: control_pb2.HeartbeatRequest) -> None:
    """Raises:
    InvalidInput: naming the field.
    """
    if len(request.run_ids) > _MAX_RUN_IDS:
        raise InvalidInput(f"{len(request.run_ids)} runs, at most {_MAX_RUN_IDS}", field="run_ids")
    for run_id in request.run_ids:
        check_run_id(run_id, field="run_ids")


def check_key(request: control_pb2.CreateKeyRequest) -> None:
    """Raises:
    InvalidInput: naming the field.
    """
    _check_text(request.name, field="name")
    if request.operator and request.project:
        raise InvalidInput("an operator's key is for every project", field="project", hint="leave one of them out")
    if request.HasField("ttl_seconds") and not 0 < request.ttl_seconds <= MAX_TTL_SECONDS:
        raise InvalidInput(f"{request.ttl_seconds} is not between 1 and {MAX_TTL_SECONDS}", field="ttl_seconds")


def check_run(request: control_pb2.ProvisionRunRequest) -> None:
    """All but the base model, of which `ServedModels` knows more.

    Raises:
        InvalidInput: naming the field.
    """
    resolve_lora(request.lora)
    if request.max_seq_len < 0:
        raise InvalidInput(f"{request.max_seq_len} is negative", field="max_seq_len")
    _check_replicas(request.replicas, field="replicas")
    _check_replicas(request.sampler_replicas, field="sampler_replicas")
    _check_text(request.name, field="name")
    check_metadata(request.user_metadata)


def check_sampler(request: control_pb2.ProvisionSamplerRequest) -> CheckpointPath | None:
    """The checkpoint asked for, or None for a base model, which is for `ServedModels` to check.

    Raises:
        InvalidInput: naming the field.
    """
    _check_replicas(request.replicas, field="replicas")
    if not request.model_path:
        return None
    path = CheckpointPath.parse(request.model_path, field="model_path")
    if path.kind != "sampler_weights":
        raise InvalidInput(
            f"{request.model_path} is no sampler's checkpoint",
            field="model_path",
            hint="save_weights_for_sampler makes one that a sampler serves",
        )
    return path


def check_base_model(name: str, *, field: str = "base_model") -> None:
    """A Hugging Face id or a directory with a model in it; whether the hub has it shows when it is loaded."""
    if not name:
        raise InvalidInput("missing", field=field, hint="a Hugging Face model id or a local directory")
    if not _HUB_ID.match(name) and not is_model_directory(name):
        raise InvalidInput(
            f"{name!r} is neither a Hugging Face model id nor a directory with a config.json", field=field
        )


def is_model_directory(directory: str) -> bool:
    """Whether there is one at that place of this machine."""
    try:
        return Path(directory, "config.json").is_file()
    except (OSError, ValueError):  # longer than any path, or with a zero byte in it
        return False


def _check_replicas(count: int, *, field: str) -> None:
    if not 0 <= count <= MAX_REPLICAS:
        raise InvalidInput(f"{count} is not between 1 and {MAX_REPLICAS}", field=field)


def _check_text(text: str, *, field: str) -> None:
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise InvalidInput(f"at most {_MAX_TEXT} printable characters", field=field)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises InvalidInput for what is no remark but a load."""
    if len(metadata) > _MAX_METADATA:
        raise InvalidInput(f"{len(metadata)} entries, at most {_MAX_METADATA}", field="user_metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_TEXT or len(value) > _MAX_METADATA_TEXT:
            raise InvalidInput(
                f"at most {_MAX_TEXT} characters a key and {_MAX_METADATA_TEXT} a value",
                field=f"user_metadata.{key[:_MAX_TEXT]}",
            )
