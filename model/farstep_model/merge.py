"""`python -m farstep_model.merge`: a base model with an adapter in its weights, as a folder for plain transformers.

The merging is peft's own, so that every kind of adapter is merged as peft defines it. It serves and trains nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from farstep_model.load import local_path
from farstep_proto.errors import ApiError, InvalidInput


def merge(adapter: Path, base_model: str, out: Path, *, dtype: str = "auto") -> None:
    """Writes the merged model and its tokenizer.

    It is merged and written in `dtype`: "auto" is the number format that the base model is stored in.

    Raises:
        NotFound: no such base model.
        InvalidInput: the adapter is not for it, or holds what is not a number.
    """
    path = local_path(base_model)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    _untie(model)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InvalidInput(f"peft cannot merge it: {error}", field="adapter") from error
    _tie_again(merged)
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(path).save_pretrained(out)


def _untie(model: PreTrainedModel) -> None:
    """Gives the output layer weights of its own: an adapter on it must not change the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _tie_again(model: PreTrainedModel) -> None:
    """Says whether output layer and embedding are still the same; where they are, they are written once."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if head is None or not config.tie_word_embeddings:
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    else:
        config.tie_word_embeddings = model.config.tie_word_embeddings = False


def main(argv: Sequence[str] | None = None) -> None:
    """Raises SystemExit, with what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m farstep_model.merge", description=__doc__)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of an adapter in PEFT's format")
    parser.add_argument("--base", required=True, help="embedded model, local directory, or hub id")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    flags = parser.parse_args(argv)
    try:
        merge(flags.adapter, flags.base, flags.out, dtype=flags.dtype)
    except ApiError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
