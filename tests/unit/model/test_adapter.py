"""Adapters to and from bytes and files: ours, and PEFT's own."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput

Load = Callable[[str], BaseModel]
Make = Callable[..., Adapter]

ALL = {"train_attn": True, "train_mlp": True, "train_unembed": True}
Q_PROJ_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def same_bits(one: Adapter, other: Adapter) -> bool:
    return one.names() == other.names() and all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def files_of(adapter: Adapter, **changed: Any) -> dict[str, bytes]:
    files = adapter.files("some/base")
    config = json.loads(files["adapter_config.json"]) | changed
    return {**files, "adapter_config.json": json.dumps(config).encode()}


def written(files: dict[str, bytes], folder: Path) -> str:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator(layers: LoraLayers) -> None:
    spec = LoraSpec(4, **ALL)
    torch.manual_seed(1)
    first = Adapter.init(layers, spec, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same_bits(Adapter.init(layers, spec, seed=7), first)
    assert not same_bits(Adapter.init(layers, spec, seed=8), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fresh_adapter_is_drawn_as_peft_draws(layers: LoraLayers) -> None:
    for name, tensor in Adapter.init(layers, LoraSpec(64), seed=0).state_dict().items():
        if "lora_B" in name:
            assert not tensor.any()
            continue
        # Kaiming-uniform with a = √5 is uniform within 1/√inputs.
        bound = tensor.shape[1] ** -0.5
        assert 0.95 * bound < tensor.abs().max() <= bound
        assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_names_are_aligned_and_in_the_models_order(layers: LoraLayers) -> None:
    adapter = Adapter.init(layers, LoraSpec(4, target_modules=("lm_head", "q_proj")), seed=0)
    assert adapter.names() == [
        f"base_model.model.{module}.lora_{matrix}.weight"
        for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head")
        for matrix in "AB"
    ]
    assert [tuple(p.shape) for p in adapter.parameters()] == [(4, 32), (32, 4)] * 2 + [(4, 32), (384, 4)]
    assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters())


def test_bytes_and_back_bit_for_bit(layers: LoraLayers, make_adapter: Make) -> None:
    adapter = make_adapter(layers, rank=3, alpha=5.5, dropout=0.125, use_rslora=True, **ALL)
    data = adapter.to_bytes()
    back = Adapter.from_bytes(layers, data)
    assert same_bits(back, adapter)
    assert (back.spec.rank, back.spec.alpha, back.spec.dropout, back.spec.use_rslora) == (3, 5.5, 0.125, True)
    assert back.to_bytes() == data
    (size,) = struct.unpack_from("<Q", data)
    config = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["adapter_config"])
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 5.5)


def test_a_clone_is_independent(layers: LoraLayers, make_adapter: Make) -> None:
    adapter = make_adapter(layers)
    clone = adapter.clone()
    assert same_bits(clone, adapter)
    with torch.no_grad():
        adapter.parameters()[0].add_(1)
    assert not same_bits(clone, adapter)


@pytest.mark.parametrize(
    "settings",
    [{}, ALL, {"target_modules": ("layers.1.mlp.up_proj", "q_proj")}, {"use_rslora": True}, {**ALL, "use_dora": True}],
)
def test_plain_peft_loads_our_files(
    load: Load, layers: LoraLayers, make_adapter: Make, ids_BT: Tensor, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = make_adapter(layers, **settings)
    folder = written(adapter.files("some/base"), tmp_path)
    model = peft.PeftModel.from_pretrained(load("llama").model, folder)
    assert set(peft.get_peft_model_state_dict(model, save_embedding_layers=False)) == set(adapter.names())
    with layers.active([adapter]):
        ours = layers.base.model(ids_BT).logits
    torch.testing.assert_close(ours, model(ids_BT).logits, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    ("target_modules", "settings", "scaling"),
    [
        (["q_proj", "down_proj"], {}, 2.0),
        (["v_proj", "lm_head"], {}, 2.0),
        ("all-linear", {}, 2.0),
        (r".*\.1\..*up_proj", {}, 2.0),
        ("all-linear", {"use_rslora": True}, 10 / 5**0.5),
        (["v_proj", "lm_head"], {"use_dora": True}, 2.0),
    ],
)
def test_pefts_own_files_load(
    load: Load,
    layers: LoraLayers,
    ids_BT: Tensor,
    tmp_path: Path,
    target_modules: list[str] | str,
    settings: dict[str, bool],
    scaling: float,
) -> None:
    common = {"task_type": "CAUSAL_LM", "r": 5, "lora_alpha": 10, "init_lora_weights": False}
    config = peft.LoraConfig(**common, target_modules=target_modules, **settings)
    model = peft.get_peft_model(load("llama").model, config).eval()
    expected = model(ids_BT).logits
    model.save_pretrained(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")}
    adapter = Adapter.from_files(layers, files)
    assert adapter.spec.scaling == scaling
    with layers.active([adapter]):
        torch.testing.assert_close(layers.base.model(ids_BT).logits, expected, rtol=0, atol=1e-5)


def test_files_without_optional_settings_load(layers: LoraLayers, make_adapter: Make) -> None:
    adapter = make_adapter(layers)
    files = {
        **adapter.files("some/base"),
        "adapter_config.json": b'{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}',
    }
    assert same_bits(Adapter.from_files(layers, files), adapter)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_qalora", True),
        ("bias", "all"),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("peft_type", "IA3"),
        ("some_future_setting", 3),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(
    layers: LoraLayers, make_adapter: Make, setting: str, value: object
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_files(layers, files_of(make_adapter(layers), **{setting: value}))
    assert caught.value.field == f"adapter_config.json.{setting}"


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ({"adapter_config.json": b"{}"}, "adapter_model.safetensors"),
        ({"adapter_model.safetensors": b""}, "adapter_config.json"),
        ({"adapter_model.safetensors": b"", "adapter_config.json": b"["}, "adapter_config.json"),
        ({"adapter_model.safetensors": b"", "adapter_config.json": b"{}"}, "adapter_config.json"),
        (
            {"adapter_model.safetensors": b"x", "adapter_config.json": b'{"peft_type":"LORA","r":4,"lora_alpha":4}'},
            "adapter_model.safetensors",
        ),
    ],
)
def test_missing_and_broken_files_are_named(layers: LoraLayers, files: dict[str, bytes], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_files(layers, files)
    assert caught.value.field == field


@pytest.mark.parametrize("data", [b"", b"garbage that is long enough", struct.pack("<Q", 2) + b"[]"])
def test_bytes_that_are_no_adapter_are_refused(layers: LoraLayers, data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_bytes(layers, data)
    assert caught.value.field == "adapter"


def test_an_adapter_of_another_model_is_refused(load: Load, layers: LoraLayers, make_adapter: Make) -> None:
    other = LoraLayers.install(load("moe"))
    router = make_adapter(layers, train_attn=False)
    with pytest.raises(InvalidInput, match="no tensor is for a layer of this model"):
        Adapter.from_files(other, router.files("x"))


def test_a_rank_that_is_not_the_tensors_is_refused(layers: LoraLayers, make_adapter: Make) -> None:
    with pytest.raises(InvalidInput, match=r"shape \[4, 32\], expected \[5, 32\]") as caught:
        Adapter.from_files(layers, files_of(make_adapter(layers), r=5))
    assert caught.value.field == Q_PROJ_A


def test_an_output_layer_of_another_base_is_refused(layers: LoraLayers, make_adapter: Make) -> None:
    from safetensors.torch import load as load_tensors
    from safetensors.torch import save

    files = make_adapter(layers, train_unembed=True).files("x")
    key = "base_model.model.lm_head.base_layer.weight"
    weight = layers.base.model.lm_head.weight.detach()
    tensors = load_tensors(files["adapter_model.safetensors"])
    fits = {**files, "adapter_model.safetensors": save({**tensors, key: weight.clone()})}
    Adapter.from_files(layers, fits)
    with pytest.raises(InvalidInput) as caught:
        Adapter.from_files(layers, {**files, "adapter_model.safetensors": save({**tensors, key: weight + 1})})
    assert caught.value.field == key


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_a_state_that_does_not_fit_changes_nothing(layers: LoraLayers, make_adapter: Make, fault: str) -> None:
    adapter, before = make_adapter(layers), make_adapter(layers)
    state = {name: tensor + 1 for name, tensor in adapter.state_dict().items()}
    name = adapter.names()[-1]
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        name = "base_model.model.elsewhere.lora_A.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = state[name][:, :2]
    with pytest.raises(InvalidInput) as caught:
        adapter.load_state_dict(state)
    assert caught.value.field == name
    assert same_bits(adapter, before)
