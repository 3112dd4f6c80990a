"""What a client asks of a run: the body of each verb, parsed and checked without the GPU.

It knows the vocabulary and the length limit and nothing else of the model; whatever depends on the state
of a run when its turn comes (does that checkpoint exist, is there a gradient) is decided there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from google.protobuf.message import Message

from farstep_proto.custom_loss import CustomLoss
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.loss_table import CUSTOM, CUSTOM_SPEC, INT_INPUTS, LOSS_TABLE, LossSpec
from farstep_proto.names import CheckpointPath, check_name
from farstep_proto.paths import Verb
from farstep_proto.tensors import Array, IntArray, model_input_ids, tensor_from_proto
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_proto.validation import (
    MAX_LORA_RANK,
    check_adapter,
    check_datum,
    check_loss,
    check_num_data,
    check_output,
    check_tokens,
)
from farstep_worker import custom_data

_MAX_CONFIG_BYTES = 1 << 20

REQUEST_TYPES: Mapping[str, type[Message]] = MappingProxyType(
    {
        Verb.FORWARD: pb.ForwardRequest,
        Verb.FORWARD_BACKWARD: pb.ForwardRequest,
        Verb.OPTIM_STEP: pb.OptimStepRequest,
        Verb.SAVE_STATE: pb.SaveStateRequest,
        Verb.PUBLISH: pb.PublishRequest,
        Verb.LOAD_STATE: pb.LoadStateRequest,
        Verb.RESET: pb.ResetRequest,
        Verb.IMPORT_ADAPTER: pb.ImportAdapterRequest,
        Verb.SKIP: pb.SkipRequest,
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model can take, for one run."""

    vocab_size: int
    max_seq_len: int
    has_value_head: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One datum: its tokens [T] and the loss's inputs, each [T] or [T, K]; `target_tokens` is always there.

    A target says that an output is wanted at its place. Where the loss is of values and none were given, it is
    wanted everywhere.
    """

    tokens: IntArray
    inputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass over a batch, with or without the backward one.

    `adapter` says which weights it is of: the run's "current" ones, those it had at its "start", or the "base" model's
    alone. A backward pass is of the current ones. `custom` is there where the loss came with the call.
    """

    loss_fn: str
    config: Mapping[str, float]
    examples: tuple[Example, ...]
    backward: bool
    adapter: str = "current"
    custom: CustomLoss | None = None

    @property
    def spec(self) -> LossSpec:
        return CUSTOM_SPEC if self.custom is not None else LOSS_TABLE[self.loss_fn]

    @property
    def num_tokens(self) -> int:
        return sum(len(example.tokens) for example in self.examples)


@dataclass(frozen=True, slots=True)
class AdamSettings:
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float
    num_tokens = 0


@dataclass(frozen=True, slots=True)
class SaveState:
    name: str
    metadata: Mapping[str, str]
    ttl_seconds: int | None
    overwrite: bool
    num_tokens = 0


@dataclass(frozen=True, slots=True)
class Publish:
    """An empty name keeps no checkpoint. With `is_external` it is all there is: nothing is published."""

    name: str
    ttl_seconds: int | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_external: bool = False
    num_tokens = 0


@dataclass(frozen=True, slots=True)
class LoadState:
    path: CheckpointPath
    optimizer: bool
    num_tokens = 0


@dataclass(frozen=True, slots=True)
class Reset:
    lora_rank: int
    num_tokens = 0


@dataclass(frozen=True, slots=True)
class ImportAdapter:
    """PEFT's files as they came; `tensors` may be a part of them."""

    name: str
    config: bytes
    tensors: bytes
    num_tokens = 0


@dataclass(frozen=True, slots=True)
class Skip:
    num_tokens = 0


Call = Pass | AdamSettings | SaveState | Publish | LoadState | Reset | ImportAdapter | Skip


def request_type(verb: str) -> type[Message]:
    """The message that a verb takes.

    Raises:
        NotFound: there is no such verb.
    """
    kind = REQUEST_TYPES.get(verb)
    if kind is None:
        raise NotFound(f"no verb {verb!r}", field="verb", hint=f"one of {', '.join(REQUEST_TYPES)}")
    return kind


def parse_call(verb: str, message: Message, limits: Limits, *, where: str = "") -> Call:
    """The checked form of a verb's message; `where` goes before the field names of data.

    Raises:
        InvalidInput: naming the field.
    """
    match message:
        case pb.ForwardRequest():
            return _parse_pass(message, limits, backward=verb == Verb.FORWARD_BACKWARD, where=where)
        case pb.OptimStepRequest():
            return _parse_adam(message)
        case pb.SaveStateRequest():
            return SaveState(check_name(message.name), dict(message.metadata), _ttl_of(message), message.overwrite)
        case pb.PublishRequest():
            return _parse_publish(message)
        case pb.LoadStateRequest():
            return LoadState(CheckpointPath.parse(message.path), message.optimizer)
        case pb.ResetRequest():
            return _parse_reset(message)
        case pb.ImportAdapterRequest():
            return _parse_import(message)
        case _:
            return Skip()


def _parse_pass(message: pb.ForwardRequest, limits: Limits, *, backward: bool, where: str) -> Pass:
    if message.loss_fn == CUSTOM:
        return _parse_custom_pass(message, limits, backward=backward, where=where)
    config = dict(message.loss_fn_config)
    spec = check_loss(message.loss_fn, config, backward=backward)
    adapter = message.adapter or "current"
    check_adapter(adapter, backward=backward)
    check_output(spec, adapter=adapter, has_value_head=limits.has_value_head)
    check_num_data(spec, len(message.data), field=f"{where}data")
    examples = tuple(
        _parse_datum(datum, spec, limits, field=f"{where}data[{index}]") for index, datum in enumerate(message.data)
    )
    return Pass(message.loss_fn, config, examples, backward, adapter)


def _parse_custom_pass(message: pb.ForwardRequest, limits: Limits, *, backward: bool, where: str) -> Pass:
    custom = CustomLoss.from_proto(message.custom_loss)
    for key in message.loss_fn_config:
        raise InvalidInput(f"{CUSTOM} has no setting {key!r}", field=f"loss_fn_config.{key}")
    adapter = message.adapter or "current"
    check_adapter(adapter, backward=backward)
    check_num_data(CUSTOM_SPEC, len(message.data), field=f"{where}data")
    examples = []
    for index, datum in enumerate(message.data):
        field = f"{where}data[{index}]"
        tokens_T = model_input_ids(datum.model_input, field=f"{field}.model_input")
        check_tokens(
            tokens_T, vocab_size=limits.vocab_size, max_seq_len=limits.max_seq_len, field=f"{field}.model_input"
        )
        inputs = custom_data.read_inputs(
            datum.loss_fn_inputs, custom, len(tokens_T), vocab_size=limits.vocab_size, field=f"{field}.loss_fn_inputs"
        )
        examples.append(Example(tokens_T, inputs))
    return Pass(CUSTOM, {}, tuple(examples), backward, adapter, custom)


def _parse_datum(datum: common_pb2.Datum, spec: LossSpec, limits: Limits, *, field: str) -> Example:
    tokens_T = model_input_ids(datum.model_input, field=f"{field}.model_input")
    given = {
        key: tensor_from_proto(tensor, field=f"{field}.loss_fn_inputs.{key}")
        for key, tensor in datum.loss_fn_inputs.items()
    }
    check_datum(spec, tokens_T, given, vocab_size=limits.vocab_size, max_seq_len=limits.max_seq_len, field=field)
    inputs = {key: array if key in INT_INPUTS else array.astype(np.float32, copy=False) for key, array in given.items()}
    return Example(tokens_T, _with_all_values(inputs, len(tokens_T)) if spec.output == "values" else inputs)


def _with_all_values(inputs: Mapping[str, Array], num_tokens: int) -> dict[str, Array]:
    """Asks for a value at every position; without returns nothing is compared with it."""
    filled = {"target_tokens": np.zeros(num_tokens, dtype=np.int64), **inputs}
    if "returns" not in inputs:
        filled |= {key: np.zeros(num_tokens, dtype=np.float32) for key in ("returns", "values", "weights")}
    return filled


def _parse_adam(message: pb.OptimStepRequest) -> AdamSettings:
    settings = {field.name: float(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}
    for name, value in settings.items():
        if not math.isfinite(value):
            raise InvalidInput(f"{value} is not a finite number", field=name)
    for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
        if settings[name] < 0:
            raise InvalidInput(f"{settings[name]} is negative", field=name)
    for name in ("beta1", "beta2"):
        if not 0 <= settings[name] < 1:
            raise InvalidInput(f"{settings[name]} is not in [0, 1)", field=name)
    if settings["eps"] <= 0:
        raise InvalidInput(f"{settings['eps']} is not positive", field="eps")
    return AdamSettings(**settings)


def _parse_publish(message: pb.PublishRequest) -> Publish:
    ttl_seconds = _ttl_of(message)
    kept = {"ttl_seconds": ttl_seconds is not None, "metadata": bool(message.metadata), "external": message.external}
    for field_name, is_given in kept.items():
        if is_given and not message.name:
            raise InvalidInput("a policy without a name is not kept", field=field_name, hint="give it a name")
    name = check_name(message.name) if message.name else ""
    return Publish(name, ttl_seconds, dict(message.metadata), message.external)


def _parse_reset(message: pb.ResetRequest) -> Reset:
    if not 1 <= message.lora_rank <= MAX_LORA_RANK:
        raise InvalidInput(f"{message.lora_rank} is not between 1 and {MAX_LORA_RANK}", field="lora_rank")
    return Reset(message.lora_rank)


def _parse_import(message: pb.ImportAdapterRequest) -> ImportAdapter:
    if not message.tensors:
        raise InvalidInput("missing", field="tensors")
    if len(message.config) > _MAX_CONFIG_BYTES:
        raise InvalidInput(f"{len(message.config)} bytes are no adapter's config", field="config")
    return ImportAdapter(check_name(message.name), message.config, message.tensors)


def _ttl_of(message: pb.SaveStateRequest | pb.PublishRequest) -> int | None:
    if not message.HasField("ttl_seconds"):
        return None
    if message.ttl_seconds <= 0:
        raise InvalidInput(f"{message.ttl_seconds} is not positive", field="ttl_seconds")
    return message.ttl_seconds
