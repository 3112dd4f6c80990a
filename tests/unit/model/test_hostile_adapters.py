"""Files that say they are adapters and are not: refused by name, without taking memory for what they only claim."""

import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from farstep_model.adapter import Adapter
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_proto.errors import InvalidInput

Make = Callable[..., Adapter]
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q_PROJ_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
_MOST_MIB = 64


@pytest.fixture(scope="module")
def layers(model_folder: Callable[[str], Path]) -> LoraLayers:
    """Nothing that is refused changes them."""
    return LoraLayers.install(load_base_model(str(model_folder("llama")), device="cpu"))


def blob(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def a_zip() -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    return file.getvalue()


def a_torch_file() -> bytes:
    file = BytesIO()
    torch.save({Q_PROJ_A: torch.zeros(2, 2)}, file)
    return file.getvalue()


HOSTILE_TENSORS = {
    "empty": b"",
    "zeros": bytes(64),
    "a length beyond the file": blob({}, length=2**63),
    "a length that is negative": struct.pack("<q", -1) + b"{}",
    "a length of 100 MB": blob({}, length=100_000_000),
    "no JSON": blob(b"{"),
    "half a character": blob(b'{"\xff": 1}'),
    "nested": blob(b"[" * 100_000),
    "a list": blob([]),
    "no tensors": blob({}),
    "metadata that is no text": blob({"__metadata__": {"a": 1}}),
    "offsets beyond the file": blob({Q_PROJ_A: entry(offsets=(0, 2**40))}, bytes(16)),
    "offsets backwards": blob({Q_PROJ_A: entry(offsets=(16, 0))}, bytes(16)),
    "offsets below zero": blob({Q_PROJ_A: entry(offsets=(-16, 0))}, bytes(16)),
    "offsets that overlap": blob({Q_PROJ_A: entry(), "b": entry(offsets=(8, 24))}, bytes(24)),
    "offsets with a hole": blob({Q_PROJ_A: entry(), "b": entry(offsets=(32, 48))}, bytes(48)),
    "more data than tensors": blob({Q_PROJ_A: entry()}, bytes(1000)),
    "a shape that is not filled": blob({Q_PROJ_A: entry(shape=(2**20, 2**20))}, bytes(16)),
    "a shape beyond all numbers": blob({Q_PROJ_A: entry(shape=(2**63, 2**63, 2**63))}, bytes(16)),
    "a shape of nothing": blob({Q_PROJ_A: entry(shape=(0, 2**40), offsets=(0, 0))}),
    "a shape that is none": blob({Q_PROJ_A: entry(shape="x")}, bytes(16)),
    "an unknown dtype": blob({Q_PROJ_A: entry("F7")}, bytes(16)),
    "a hundred thousand tensors": blob({f"t{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(100_000)}),
    "a key twice": blob(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(16)),
    "a pickle": pickle.dumps({"a": 1}),
    "a zip": a_zip(),
    "a torch file": a_torch_file(),
    "complex numbers": save({Q_PROJ_A: torch.zeros(2, 2, dtype=torch.complex64)}),
    "a config in the metadata that is nested": blob({"__metadata__": {"adapter_config": "[" * 60_000}}),
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_hostile_tensors(layers: LoraLayers, make_adapter: Make, hostile: bytes) -> None:
    files = make_adapter(layers).files("some/base")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_files(layers, {**files, TENSORS: hostile})
    assert caught.value.field
    assert len(caught.value.message) < 2000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < _MOST_MIB


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_are_floating_point(layers: LoraLayers, make_adapter: Make, dtype: torch.dtype) -> None:
    adapter = make_adapter(layers)
    tensors = {**adapter.state_dict(), Q_PROJ_A: adapter.state_dict()[Q_PROJ_A].to(dtype)}
    with pytest.raises(InvalidInput, match=r"floating"):
        Adapter.from_files(layers, {**adapter.files("some/base"), TENSORS: save(tensors)})


@pytest.mark.parametrize("rank", [0, -1, 513, 10**12, 1e400, "x", None, [4], True])
def test_hostile_ranks(layers: LoraLayers, make_adapter: Make, rank: Any) -> None:
    files = make_adapter(layers).files("some/base")
    config = json.loads(files[CONFIG])
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_files(layers, {**files, CONFIG: json.dumps({**config, "r": rank}).encode()})
    assert caught.value.field.startswith(CONFIG) or caught.value.field == "lora.rank"


@pytest.mark.parametrize(
    "config",
    [
        b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"r": ' + b"[" * 100_000, b"\xff", b'{"r": ' + b"9" * 5000 + b"}",
        b'{"r": 4, "lora_alpha": 1, "peft_type": "LORA", "surprise": "' + b"x" * 900_000 + b'"}',
        b'{"r": 4, "lora_alpha": NaN, "peft_type": "LORA"}',
        b'{"r": 4, "lora_alpha": 1, "lora_dropout": [1], "peft_type": "LORA"}',
        b'{"r": 4, "lora_alpha": 1, "lora_dropout": 7, "peft_type": "LORA"}',
        b'{"r": 4, "lora_alpha": 1, "peft_type": ["LORA"]}',
        b'{"r": 4, "lora_alpha": 1, "peft_type": "LORA", "init_lora_weights": {"a": 1}}',
    ],
    ids=range(14),
)  # fmt: skip
def test_hostile_configs(layers: LoraLayers, make_adapter: Make, config: bytes) -> None:
    files = make_adapter(layers).files("some/base")
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_files(layers, {**files, CONFIG: config})
    assert caught.value.field
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize("hostile", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS.keys())
def test_hostile_policies(layers: LoraLayers, hostile: bytes) -> None:
    """A sampler takes them from a feed or a bucket."""
    with pytest.raises(InvalidInput):
        Adapter.from_bytes(layers, hostile)
