"""Loading: what a base model is, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from farstep_model.adapter import Adapter
from farstep_model.embedded import MODEL_NAME
from farstep_model.head import Head, find_head
from farstep_model.load import BaseModel, load_base_model, load_skeleton, tokenizer_files
from farstep_model.lora import LoraLayers
from farstep_model.peft_format import TENSORS_FILE
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput, NotFound

Load = Callable[[str], BaseModel]


def test_default_is_the_embedded_model() -> None:
    base = load_base_model(device="cpu")
    assert base.name == MODEL_NAME
    assert (base.dtype, base.device.type) == (torch.float32, "cpu")
    assert base.max_seq_len == 2048
    assert base.vocab_size == len(base.tokenizer)
    assert base.eos_token_ids == (base.tokenizer.eos_token_id,)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("qwen3", Head()),
        ("llama", Head()),
        ("gemma2", Head(softcap=2.0)),
        ("cohere", Head(scale=0.25)),
        ("granite", Head(scale=0.25)),
        ("moe", Head()),
    ],
)
def test_hidden_states_and_head_give_the_models_own_logits(
    load: Load, ids_BT: torch.Tensor, kind: str, head: Head
) -> None:
    base = load(kind)
    assert base.head == head
    logits = base.logits(base.hidden_states(ids_BT))
    expected = base.model(ids_BT).logits
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_bf16_weights_give_fp32_logits(model_folder: Callable[[str], Path], ids_BT: torch.Tensor) -> None:
    base = load_base_model(str(model_folder("gemma2")), device="cpu", dtype=torch.bfloat16)
    assert base.model.dtype == torch.bfloat16
    logits = base.logits(base.hidden_states(ids_BT))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, base.model(ids_BT).logits.float(), rtol=0, atol=0.05)


def test_a_head_that_does_more_is_refused() -> None:
    class Shifted(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> CausalLMOutputWithPast:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + 0.1
            return output

    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(InvalidInput, match="Shifted does more") as caught:
        find_head(Shifted(config).eval())
    assert caught.value.field == "base_model"


def test_tokenizer_files_are_all_that_a_tokenizer_needs(load: Load, tmp_path: Path) -> None:
    base = load("qwen3")
    files = tokenizer_files(base.path).files
    assert not any(name.endswith(".safetensors") for name in files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    messages = [{"role": "user", "content": "12+34?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == base.tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    assert tokenizer.encode("naïve 東京") == base.tokenizer.encode("naïve 東京")


def test_pickled_weights_are_not_loaded(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(model_folder("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"has no .*safetensors file"):
        load_base_model(str(tmp_path), device="cpu")


def test_a_broken_config_is_an_error_of_the_base_model(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(model_folder("llama"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(InvalidInput, match="cannot be loaded") as caught:
        load_base_model(str(tmp_path), device="cpu")
    assert caught.value.field == "base_model"


def test_an_unknown_name_is_not_found() -> None:
    with pytest.raises(NotFound, match="neither a folder nor a model") as caught:
        load_base_model("no/such/folder", device="cpu")
    assert MODEL_NAME in caught.value.hint


@pytest.mark.parametrize("device", ["cuda:99", "tpu-or-so"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_base_model(device=device)
    assert caught.value.field == "device"


def test_a_skeleton_knows_what_the_model_knows_but_its_weights() -> None:
    whole, skeleton = load_base_model(device="cpu"), load_skeleton(MODEL_NAME, dtype=torch.float32)
    for name in ("name", "path", "max_seq_len", "vocab_size", "eos_token_ids", "dtype", "device"):
        assert getattr(skeleton, name) == getattr(whole, name)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    layers = LoraLayers.install(skeleton)
    assert layers.targets == LoraLayers.install(whole).targets


def test_adapters_are_checked_against_a_skeleton() -> None:
    layers = LoraLayers.install(load_skeleton(MODEL_NAME, dtype=torch.float32))
    made = Adapter.init(LoraLayers.install(load_base_model(device="cpu")), LoraSpec(rank=4, train_unembed=True), seed=1)
    data = made.to_bytes()
    assert Adapter.from_bytes(layers, data).to_bytes() == data
    files = made.files("farstep/tiny")
    tensors = load(files[TENSORS_FILE])
    name = next(name for name in tensors if "down_proj.lora_A" in name)
    nowhere = "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"
    for broken in ({name: tensors[name][:, 1:].contiguous()}, {nowhere: torch.ones(4, 128)}):
        with pytest.raises(InvalidInput):
            Adapter.from_files(layers, {**files, TENSORS_FILE: save(tensors | broken)})
    copied = {"base_model.model.lm_head.base_layer.weight": torch.zeros(1024, 128)}
    Adapter.from_files(layers, {**files, TENSORS_FILE: save(tensors | copied)})  # the base's own, for all that is known
    odd = {"base_model.model.lm_head.base_layer.weight": torch.zeros(1000, 128)}
    with pytest.raises(InvalidInput, match="output layer"):
        Adapter.from_files(layers, {**files, TENSORS_FILE: save(tensors | odd)})


def test_a_skeleton_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no \*\.safetensors file"):
        load_skeleton(str(tmp_path), dtype=torch.float32)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_skeleton(str(tmp_path), dtype=torch.float32)
