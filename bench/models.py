"""Models by the name that the benchmark is given: the embedded one, a folder, or random weights of a known size."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from farstep_model.embedded import MODEL_NAME, model_dir

RANDOM_30M = "random-30m"
RANDOM_100M = "random-100m"

# hidden size, intermediate size, layers, query heads, key heads
_SHAPES = {RANDOM_30M: (512, 1_408, 8, 8, 4), RANDOM_100M: (768, 2_048, 14, 12, 4)}


def model_folder(name: str, *, scratch: Path) -> Path:
    """The folder of a model's files; random weights are written below `scratch`."""
    if name == MODEL_NAME:
        return model_dir()
    return _write_random(name, scratch / name) if name in _SHAPES else Path(name)


def _write_random(name: str, folder: Path) -> Path:
    """A Qwen3 with the embedded model's tokenizer: 32 M parameters, 23 M of them in its blocks, or 101 M and 88 M."""
    shutil.copytree(model_dir(), folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    hidden_size, intermediate_size, num_layers, num_heads, num_key_heads = _SHAPES[name]
    config = Qwen3Config(
        vocab_size=16_384,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_heads,
        head_dim=64,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder
