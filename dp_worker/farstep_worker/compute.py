"""How passes are computed: what the flags say, and a base model made ready for it.

Every process of a trainer gets the same settings, and finds for itself what "auto" means on its device.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.packed import Layout, NotPackableError, enable_packing
from farstep_model.recompute import enable_recomputation
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput
from farstep_worker.device import Device, device_at, settle_numerics
from farstep_worker.gradients import run_pass
from farstep_worker.submission import Example, Pass

log = logging.getLogger(__name__)

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_TRIAL_LENGTH = 256
_TRIAL_RANK = 16


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """`dtype` is of the base model's weights; adapters and their moments are fp32 always. None and auto: by device."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batching: Literal["auto", "padded", "packed"] = "auto"
    token_budget: int | None = None
    gradient_checkpointing: bool = False
    deterministic: bool = False

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dtype", default="auto", choices=list(_DTYPES), help="of the base model's weights")
        parser.add_argument(
            "--batching",
            default="auto",
            choices=["auto", "padded", "packed"],
            help="auto: padded on CPU, packed on GPU",
        )
        parser.add_argument(
            "--token-budget",
            type=_positive,
            help="tokens of a micro-batch, with padding; on a CPU by default 2048 a thread",
        )
        parser.add_argument(
            "--gradient-checkpointing",
            action="store_true",
            help="less memory for half as much time again: layers run forward twice",
        )
        parser.add_argument("--deterministic", action="store_true", help="a GPU repeats itself bit for bit, slower")

    @classmethod
    def of(cls, flags: argparse.Namespace) -> ComputeSettings:
        """From a parser that has `add_flags`."""
        return cls(
            dtype=flags.dtype,
            batching=flags.batching,
            token_budget=flags.token_budget,
            gradient_checkpointing=flags.gradient_checkpointing,
            deterministic=flags.deterministic,
        )

    def to_flags(self) -> list[str]:
        """What `of` reads the same from."""
        flags = ["--dtype", self.dtype, "--batching", self.batching]
        if self.token_budget is not None:
            flags += ["--token-budget", str(self.token_budget)]
        flags += ["--gradient-checkpointing"] * self.gradient_checkpointing
        return flags + ["--deterministic"] * self.deterministic


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A base model that adapters can be trained on, and how its micro-batches are cut."""

    layers: LoraLayers
    layout: Layout
    token_budget: int


def prepare(model: str, settings: ComputeSettings, *, device: str | torch.device, num_threads: int) -> Prepared:
    """Loads a base model and makes it ready for a process with so many threads.

    Raises:
        NotFound: there is no such model.
        InvalidInput: it cannot be loaded, or not be trained in the way that is asked for.
    """
    base = load_base_model(model, device=device, dtype=_DTYPES[settings.dtype])
    return prepare_base(base, settings, num_threads=num_threads)


def prepare_base(base: BaseModel, settings: ComputeSettings, *, num_threads: int) -> Prepared:
    """As `prepare`, for a model that is there already, in the dtype that it has."""
    settle_numerics(deterministic=settings.deterministic)
    layers = LoraLayers.install(base)
    place = device_at(base.device)
    layout = _layout(layers, settings, place)
    if settings.gradient_checkpointing:
        enable_recomputation(layers)
    token_budget = settings.token_budget or place.token_budget(
        lambda num_tokens: _try_pass(layers, layout, num_tokens), num_threads=num_threads
    )
    log.info(
        "%s on %s in %s: %s micro-batches of up to %d tokens", base.name, base.device, base.dtype, layout, token_budget
    )
    return Prepared(layers, layout, token_budget)


def _layout(layers: LoraLayers, settings: ComputeSettings, place: Device) -> Layout:
    wanted = place.layout if settings.batching == "auto" else settings.batching
    if wanted == "packed":
        try:
            enable_packing(layers.base)
        except NotPackableError as error:
            if settings.batching == "packed":
                raise InvalidInput(
                    f"{layers.base.name!r} cannot be packed here: {error}",
                    field="batching",
                    hint="--batching auto pads the sequences of such a model",
                ) from error
            log.warning("sequences are padded, as they cannot be packed here: %s", error)
            return "padded"
    return wanted


def _try_pass(layers: LoraLayers, layout: Layout, num_tokens: int) -> None:
    """Forward and backward over sequences of so many tokens together, all at once."""
    adapter = Adapter.init(layers, LoraSpec(_TRIAL_RANK), seed=0)
    length = min(_TRIAL_LENGTH, layers.base.max_seq_len, num_tokens)
    tokens = np.arange(length, dtype=np.int32) % layers.base.vocab_size
    example = Example(tokens, {"target_tokens": tokens.astype(np.int64)})
    call = Pass("cross_entropy", {}, (example,) * (num_tokens // length), backward=True)
    run_pass(adapter, call, token_budget=num_tokens, dropout_seed=0, layout=layout)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
