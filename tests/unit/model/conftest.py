"""Tiny random models of several architectures, saved once and loaded afresh for every test that changes them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from farstep_model.adapter import Adapter
from farstep_model.embedded import model_dir
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec

VOCAB = 384  # that of the embedded tokenizer

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=8, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "gemma2": lambda: Gemma2Config(**_SHAPE, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "cohere": lambda: CohereConfig(**_SHAPE, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SHAPE, logits_scaling=4.0),
    "moe": lambda: Qwen3MoeConfig(
        **_SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and lose much when cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny model by architecture."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(path)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(model_dir() / name, path / name)
        return path

    return folder


@pytest.fixture
def load(model_folder: Callable[[str], Path]) -> Callable[[str], BaseModel]:
    """Loads a fresh copy of a tiny model by architecture, on the CPU in fp32."""
    return lambda kind: load_base_model(str(model_folder(kind)), device="cpu")


@pytest.fixture
def ids_BT() -> torch.Tensor:
    return torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def layers(load: Callable[[str], BaseModel]) -> LoraLayers:
    """The layers of a fresh tiny Llama, whose output layer is its own."""
    return LoraLayers.install(load("llama"))


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """Makes an adapter of rank 4 and alpha 6, unless told otherwise, whose B is not zero: it changes something.

    Nor are the magnitudes of DoRA those of the base.
    """

    def make(layers: LoraLayers, *, seed: int = 1, **settings: Any) -> Adapter:
        adapter = Adapter.init(layers, LoraSpec(**{"rank": 4, "alpha": 6.0, **settings}), seed=seed)
        generator = torch.Generator().manual_seed(seed + 100)
        for name, tensor in adapter.state_dict().items():
            if "lora_B" in name:
                tensor.normal_(std=0.1, generator=generator)
            if "magnitude" in name:
                tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.5, generator=generator))
        return adapter

    return make
