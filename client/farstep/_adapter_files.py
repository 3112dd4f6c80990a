"""An adapter on this machine or on the hub: its two files in PEFT's format, looked at before they go anywhere.

It reads safetensors' header and no tensor; a pickle is refused unread. Whether the adapter fits a model is for the
trainer to say.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farstep.errors import InvalidInputError, MissingExtraError, NotFoundError
from farstep_proto.v1 import training_pb2

_CONFIG = "adapter_config.json"
_TENSORS = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 64 << 20
_ROOM_BYTES = 64  # tags and lengths around the bytes of a part


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """`base_model` is the one that the config names, perhaps none."""

    config: bytes
    tensors: Path
    base_model: str

    def parts(self, name: str, *, max_request_bytes: int) -> list[bytes]:
        """Requests below the server's limit that make one operation."""
        frame = training_pb2.ImportAdapterRequest(name=name, config=self.config)
        room_bytes = max_request_bytes - frame.ByteSize() - _ROOM_BYTES
        if room_bytes <= 0:
            raise InvalidInputError(f"{_CONFIG} is larger than a request may be", field="adapter")
        parts: list[bytes] = []
        with open(self.tensors, "rb") as file:
            while piece := file.read(room_bytes):
                part = training_pb2.ImportAdapterRequest(name=name, config=self.config, tensors=piece)
                parts.append(part.SerializeToString())
        return parts


def find_adapter(dir_or_hub_id: str | Path) -> AdapterFiles:
    """The adapter in a folder, or in a repository of the hub, which is downloaded; blocks.

    Raises:
        NotFoundError: there is neither.
        InvalidInputError: a file is missing or damaged, or it is a pickle.
        MissingExtraError: a hub id, without huggingface-hub.
    """
    folder = Path(dir_or_hub_id).expanduser()
    if not folder.is_dir():
        folder = _from_hub(str(dir_or_hub_id))
    if not (folder / _TENSORS).is_file() and any((folder / name).exists() for name in _PICKLES):
        raise InvalidInputError(
            "the adapter is a pickle, which may run anything when it is loaded",
            field="adapter",
            hint="save it again with peft: save_pretrained(…, safe_serialization=True)",
        )
    for name in (_CONFIG, _TENSORS):
        if not (folder / name).is_file():
            raise InvalidInputError(f"{folder} has no {name}", field="adapter")
    content = _config(folder / _CONFIG)
    _check_header(folder / _TENSORS)
    named = content.get("base_model_name_or_path")
    return AdapterFiles((folder / _CONFIG).read_bytes(), folder / _TENSORS, named if isinstance(named, str) else "")


def _config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidInputError(f"{path.stat().st_size} bytes are no adapter's config", field=_CONFIG)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"not JSON: {error}", field=_CONFIG) from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise InvalidInputError("it is no LoRA adapter's", field=_CONFIG)
    return content


def _check_header(path: Path) -> None:
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else num_bytes
        if 8 + size > num_bytes or size > _MAX_HEADER_BYTES:
            raise InvalidInputError("not a safetensors file", field=_TENSORS)
        try:
            json.loads(file.read(size))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError("not a safetensors file", field=_TENSORS) from error


def _from_hub(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            f"{repo_id!r} is no folder here, and the hub needs huggingface-hub", hint="pip install huggingface-hub"
        ) from error
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[_CONFIG, _TENSORS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise NotFoundError(
            f"{repo_id!r} is neither a folder nor an adapter that the hub gives: {error}",
            hint="private ones need HF_TOKEN",
        ) from error
