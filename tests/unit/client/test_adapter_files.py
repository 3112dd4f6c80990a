"""Adapters before they go up: cut into requests, and what is refused unread."""

import json
import struct

import pytest

import farstep
from farstep._adapter_files import find_adapter
from farstep_proto.v1 import training_pb2

TENSORS = struct.pack("<Q", 2) + b"{}" + bytes(range(256)) * 20


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "b/m"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(TENSORS)
    return tmp_path


@pytest.mark.parametrize("limit", [1000, 100_000])
def test_every_part_is_below_the_limit_and_together_they_are_the_file(folder, limit):
    files = find_adapter(folder)
    assert files.base_model == "b/m"
    parts = files.parts("name", max_request_bytes=limit)
    assert all(len(part) <= limit for part in parts)
    messages = [training_pb2.ImportAdapterRequest.FromString(part) for part in parts]
    assert b"".join(message.tensors for message in messages) == TENSORS
    assert {(message.name, message.config) for message in messages} == {("name", files.config)}
    assert len(parts) == (1 if limit > len(TENSORS) else 6)


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("adapter_config.json", b"{", "adapter_config.json"),
        ("adapter_config.json", b"[" * 100_000, "adapter_config.json"),
        ("adapter_config.json", b"[]", "adapter_config.json"),
        ("adapter_config.json", b" " * (2 << 20), "adapter_config.json"),
        ("adapter_model.safetensors", b"", "adapter_model.safetensors"),
        ("adapter_model.safetensors", b"\x80\x02}q\x00." * 10, "adapter_model.safetensors"),
        ("adapter_model.safetensors", struct.pack("<Q", 4) + b"{{{{", "adapter_model.safetensors"),
    ],
)
def test_a_damaged_file_is_refused_by_name(folder, name, content, field):
    (folder / name).write_bytes(content)
    with pytest.raises(farstep.InvalidInputError) as caught:
        find_adapter(folder)
    assert caught.value.field == field


def test_a_pickle_is_refused(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(farstep.InvalidInputError, match="pickle"):
        find_adapter(folder)


def test_neither_a_folder_nor_a_repository(folder):
    with pytest.raises(farstep.NotFoundError, match="neither a folder nor"):
        find_adapter("no/such/thing/here")
