"""Models by the name that the benchmark is given: the embedded one, a folder, or random weights of a known size."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from farstep_model.embedded import MODEL_NAME, model_dir

RANDOM_100M = "random-100m"


def model_folder(name: str, *, scratch: Path) -> Path:
    """The folder of a model's files; random weights are written below `scratch`."""
    if name == MODEL_NAME:
        return model_dir()
    return _write_random_100m(scratch / RANDOM_100M) if name == RANDOM_100M else Path(name)


def _write_random_100m(folder: Path) -> Path:
    """A Qwen3 of 101 M parameters, 88 M of them in its blocks, with the embedded model's tokenizer."""
    shutil.copytree(model_dir(), folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = Qwen3Config(
        vocab_size=16_384,
        hidden_size=768,
        intermediate_size=2_048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2_048,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder
