"""A base model from disk or hub: transformers' own class, frozen, with its tokenizer and its limits.

No pickle is read and no code of a model repository is run. What is loaded is checked to split into hidden states and
head before anyone relies on it.

Shapes: B batch rows, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from farstep_model.embedded import MODEL_NAME, model_dir
from farstep_model.head import Head, find_head
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.v1 import training_pb2

_TOKENIZER_PATTERNS = (
    "config.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
)
_MODEL_PATTERNS = (*_TOKENIZER_PATTERNS, "generation_config.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, slots=True, eq=False)
class BaseModel:
    """A frozen model and what one must know to use it.

    `path` is the local folder of its files, `max_seq_len` counts tokens, `eos_token_ids` end a sequence.
    """

    name: str
    path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    device: torch.device
    dtype: torch.dtype
    max_seq_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]

    def hidden_states(self, input_ids_BT: Tensor, **kwargs: object) -> Tensor:
        """The last hidden states [B, T, D], normalised, ready for `logits`.

        Keyword arguments (`attention_mask`, `position_ids`, `past_key_values`, …) are those of the transformers
        model. Nothing is cached unless `use_cache=True`; a cache that is given is filled in place.
        """
        kwargs.setdefault("use_cache", False)
        return cast(Tensor, self.model.base_model(input_ids=input_ids_BT, **kwargs).last_hidden_state)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits […, V] in fp32 from hidden states […, D]."""
        return self.head.finish(self.model.get_output_embeddings()(hidden))

    def text(self, ids: Sequence[int]) -> str:
        """What tokens stand for, special ones included."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def load_base_model(
    name: str = MODEL_NAME, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> BaseModel:
    """Loads a model by name: the embedded one, a local folder, or a hub id.

    Args:
        device: "auto" takes CUDA where there is one.
        dtype: of the weights; fp32 on a CPU and bf16 elsewhere unless given.

    Raises:
        NotFound: no such folder or hub model.
        InvalidInput: a device that is not there, or files that are no causal language model in safetensors.
    """
    place = _device(device)
    path = local_path(name)
    _check_safetensors(name, path)
    dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
    transformers_logging.disable_progress_bar()  # it would fill the log of a server
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InvalidInput(f"{name!r} cannot be loaded: {error}", field="base_model") from error
    model = model.to(place).eval().requires_grad_(False)
    return _base_model(name, path, model, tokenizer, head=find_head(model), device=place, dtype=dtype)


def load_skeleton(name: str, *, dtype: torch.dtype) -> BaseModel:
    """A model without its weights, for who must know its layers and limits but lets another program compute it.

    Its layers have their shapes, on torch's meta device; its name, limits, tokenizer and end tokens are those that
    `load_base_model` gives. Adapters for it are read to the CPU.

    Args:
        dtype: of the weights where they are.

    Raises:
        NotFound, InvalidInput: as `load_base_model`.
    """
    path = local_path(name)
    _check_safetensors(name, path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if (path / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InvalidInput(f"{name!r} cannot be loaded: {error}", field="base_model") from error
    model = model.eval().requires_grad_(False)
    return _base_model(name, path, model, tokenizer, head=Head(), device=torch.device("cpu"), dtype=dtype)


@functools.lru_cache(maxsize=4)
def tokenizer_files(path: str) -> training_pb2.TokenizerFiles:
    """The files in a model's folder that `AutoTokenizer.from_pretrained` needs, as a server hands them out."""
    files = {
        file.name: file.read_bytes()
        for pattern in _TOKENIZER_PATTERNS
        for file in sorted(Path(path).glob(pattern))
        if file.is_file()
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return training_pb2.TokenizerFiles(files=files, sha256=digest.hexdigest())


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device {device!r} is not there: {error}", field="device") from error
    return place


def local_path(name: str) -> Path:
    if name == MODEL_NAME:
        return model_dir()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    try:
        return Path(snapshot_download(name, allow_patterns=list(_MODEL_PATTERNS)))
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise NotFound(
            f"{name!r} is neither a folder nor a model that the hub gives: {error}",
            field="base_model",
            hint=f"the embedded model is {MODEL_NAME!r}; gated models need HF_TOKEN",
        ) from error


def _check_safetensors(name: str, path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        raise InvalidInput(f"{name!r} has no *.safetensors file", field="base_model", hint="no other format is loaded")


def _base_model(
    name: str,
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: Head,
    device: torch.device,
    dtype: torch.dtype,
) -> BaseModel:
    return BaseModel(
        name=name,
        path=str(path),
        model=model,
        tokenizer=tokenizer,
        head=head,
        device=device,
        dtype=dtype,
        max_seq_len=_max_seq_len(model, tokenizer),
        vocab_size=min(model.get_input_embeddings().num_embeddings, model.get_output_embeddings().out_features),
        eos_token_ids=_eos_token_ids(model, tokenizer),
    )


def _max_seq_len(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit or tokenizer.model_max_length)


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    generation = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids: list[int] = []
    for source in (generation, model.config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        ids.extend(source if isinstance(source, Iterable) else [source] if source is not None else [])
    return tuple(dict.fromkeys(ids))
