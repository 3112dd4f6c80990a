"""Tiny random models of several architectures."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from farstep_model.embedded import model_dir

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

_WIDE = {**_SHAPE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "initializer_range": 0.05}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=8, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "gemma2": lambda: Gemma2Config(**_SHAPE, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "cohere": lambda: CohereConfig(**_SHAPE, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**_SHAPE, logits_scaling=4.0),
    "moe": lambda: Qwen3MoeConfig(
        **_SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
    ),
    # with heads of 64 numbers, for kernels that want them so
    "wide_llama": lambda: LlamaConfig(**_WIDE, tie_word_embeddings=False),
    "wide_mistral": lambda: MistralConfig(**_WIDE, sliding_window=16),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=4),
    "gemma2_uncapped": lambda: Gemma2Config(
        **_SHAPE, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, attn_logit_softcapping=None
    ),
    "hybrid": lambda: Qwen3NextConfig(
        **_SHAPE,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "sinks": lambda: GptOssConfig(**_SHAPE, head_dim=8, num_local_experts=4, sliding_window=4),
    "alibi": lambda: BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


def write_model(kind: str, folder: Path) -> None:
    """Files of a model, the same for the same kind, with the embedded model's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_dir() / name, folder / name)
