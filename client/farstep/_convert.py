"""Types to messages and back, checked on the way out, decoded only when somebody looks.

Pure: no I/O. Objects that look like another library's `Datum` or `ModelInput` are taken by their attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import numpy as np

from farstep._tensor_data import TensorData, as_tensor_data
from farstep.errors import FarstepError, InvalidInputError, ServerError, checked, error_from_outcome
from farstep.results import (
    ForwardBackwardOutput,
    LoadWeightsResponse,
    LoraConfig,
    OperationTrace,
    OptimStepResponse,
    QueuedOperation,
    SampledSequence,
    SampleResult,
    SaveWeightsResponse,
    TokenLogprob,
)
from farstep.types import AdamParams, EncodedTextChunk, ImageChunk, ModelInput, SamplingParams
from farstep_proto import tensors
from farstep_proto.loss_table import INT_INPUTS, LossSpec
from farstep_proto.tensors import Array
from farstep_proto.v1 import common_pb2, operations_pb2, sampling_pb2, training_pb2
from farstep_proto.validation import check_adapter, check_datum, check_loss, check_num_data, check_output, check_tokens

T = TypeVar("T")
Decode = Callable[[operations_pb2.Operation], T]


# Out: what a call sends


def forward_request(
    data: Iterable[Any],
    loss_fn: str,
    loss_fn_config: Mapping[str, float] | None,
    *,
    vocab_size: int,
    max_seq_len: int,
    adapter: str = "current",
    backward: bool = True,
    has_value_head: bool = False,
) -> training_pb2.ForwardRequest:
    """A checked batch.

    Raises:
        InvalidInputError: naming the datum and the key.
    """
    config = {key: number(f"loss_fn_config.{key}", value) for key, value in (loss_fn_config or {}).items()}
    with checked():
        spec = check_loss(loss_fn, config, backward=backward)
        check_adapter(adapter, backward=backward)
        check_output(spec, adapter=adapter, has_value_head=has_value_head)
    messages = [
        _datum_to_proto(datum, spec, vocab_size=vocab_size, max_seq_len=max_seq_len, field=f"data[{index}]")
        for index, datum in enumerate(data)
    ]
    with checked():
        check_num_data(spec, len(messages), field="data")
    return training_pb2.ForwardRequest(data=messages, loss_fn=loss_fn, loss_fn_config=config, adapter=adapter)


def _datum_to_proto(datum: Any, spec: LossSpec, *, vocab_size: int, max_seq_len: int, field: str) -> common_pb2.Datum:
    if not hasattr(datum, "model_input") or not hasattr(datum, "loss_fn_inputs"):
        raise TypeError(f"{field}: expected a Datum, not {type(datum).__name__}")
    model_input = model_input_to_proto(datum.model_input, field=f"{field}.model_input")
    inputs = {key: _loss_input(key, value, field) for key, value in datum.loss_fn_inputs.items()}
    with checked():
        tokens_T = tensors.model_input_ids(model_input, field=f"{field}.model_input")
        check_datum(spec, tokens_T, inputs, vocab_size=vocab_size, max_seq_len=max_seq_len, field=field)
    message = common_pb2.Datum(model_input=model_input)
    for key, array in inputs.items():
        message.loss_fn_inputs[key].CopyFrom(tensors.tensor_to_proto(array))
    return message


def _loss_input(key: str, value: Any, field: str) -> Array:
    try:
        array = as_tensor_data(key, value).to_numpy()
    except (TypeError, InvalidInputError) as error:
        raise type(error)(f"{field}.{error}") from error
    return array if key in INT_INPUTS else array.astype(np.float32, copy=False)


def model_input_to_proto(model_input: Any, *, field: str) -> common_pb2.ModelInput:
    """Takes a `ModelInput`, one of another library, or token ids."""
    if isinstance(model_input, str):
        raise TypeError(f"{field}: expected token ids, not text; encode it with the tokenizer first")
    if not hasattr(model_input, "chunks"):
        model_input = ModelInput.from_ints(model_input)
    return common_pb2.ModelInput(chunks=[_chunk_to_proto(chunk, field) for chunk in model_input.chunks])


def _chunk_to_proto(chunk: Any, field: str) -> common_pb2.Chunk:
    if not isinstance(chunk, EncodedTextChunk | ImageChunk):
        chunk = _own_chunk(chunk, field)
    if isinstance(chunk, EncodedTextChunk):
        text = common_pb2.EncodedTextChunk(tokens=tensors.ids_to_bytes(chunk.tokens))
        return common_pb2.Chunk(encoded_text=text)
    image = common_pb2.ImageChunk(data=chunk.data, format=chunk.format, expected_tokens=chunk.expected_tokens)
    return common_pb2.Chunk(image=image)


def _own_chunk(chunk: Any, field: str) -> EncodedTextChunk | ImageChunk:
    if hasattr(chunk, "tokens"):
        return EncodedTextChunk(chunk.tokens)
    if hasattr(chunk, "data") and hasattr(chunk, "format"):
        return ImageChunk(chunk.data, chunk.format, getattr(chunk, "expected_tokens", None))
    raise TypeError(f"{field}: {type(chunk).__name__} is no chunk of text or image")


def num_tokens(request: training_pb2.ForwardRequest) -> int:
    return sum(len(chunk.encoded_text.tokens) // 4 for datum in request.data for chunk in datum.model_input.chunks)


def adam_to_proto(params: AdamParams) -> training_pb2.OptimStepRequest:
    if not isinstance(params, AdamParams):
        raise TypeError(f"adam_params: expected AdamParams, not {type(params).__name__}")
    return training_pb2.OptimStepRequest(
        learning_rate=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        grad_clip_norm=params.grad_clip_norm,
    )


def checked_prompt(prompt: Any, *, vocab_size: int, max_seq_len: int, field: str = "prompt") -> common_pb2.ModelInput:
    message = model_input_to_proto(prompt, field=field)
    with checked():
        tokens_T = tensors.model_input_ids(message, field=field)
        check_tokens(tokens_T, vocab_size=vocab_size, max_seq_len=max_seq_len, field=field)
    return message


def sampling_params_to_proto(params: SamplingParams) -> sampling_pb2.SamplingParams:
    if not isinstance(params, SamplingParams):
        raise TypeError(f"sampling_params: expected SamplingParams, not {type(params).__name__}")
    stop_strings, stop_tokens = params.stops()
    constraint: Any = params.constraint()
    return sampling_pb2.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        stop_strings=stop_strings,
        stop_tokens=stop_tokens,
        ignore_eos=params.ignore_eos,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias={int(token): bias for token, bias in params.logit_bias.items()},
        min_tokens=params.min_tokens,
        **constraint,
    )


def lora_to_proto(lora: LoraConfig) -> common_pb2.LoraConfig:
    return common_pb2.LoraConfig(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=lora.target_modules,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        value_head=lora.value_head,
    )


# In: what an operation gives


def outcome_error(operation: operations_pb2.Operation) -> FarstepError | None:
    """The error that the operation ended with; None where it succeeded."""
    if operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED:
        return None
    return error_from_outcome(operation.error, operation_id=operation.operation_id)


def _expect(operation: operations_pb2.Operation, name: str) -> Any:
    if operation.WhichOneof("outcome") != name:
        raise ServerError(f"operation {operation.operation_id} ended without a {name} outcome")
    return getattr(operation, name)


def forward_backward_output(operation: operations_pb2.Operation) -> ForwardBackwardOutput:
    message = _expect(operation, "forward_backward")
    outputs = [
        {key: TensorData(tensors.tensor_from_proto(tensor, field=key)) for key, tensor in output.fields.items()}
        for output in message.loss_fn_outputs
    ]
    return ForwardBackwardOutput(message.loss, dict(message.metrics), outputs)


def optim_step_response(operation: operations_pb2.Operation) -> OptimStepResponse:
    return OptimStepResponse(dict(_expect(operation, "optim_step").metrics))


def save_weights_response(operation: operations_pb2.Operation) -> SaveWeightsResponse:
    message = _expect(operation, "save_weights")
    return SaveWeightsResponse(message.path, message.policy_version if message.HasField("policy_version") else None)


def load_weights_response(operation: operations_pb2.Operation) -> LoadWeightsResponse:
    message = _expect(operation, "load_weights")
    return LoadWeightsResponse(message.path, message.step)


def nothing(operation: operations_pb2.Operation) -> None:
    _expect(operation, "empty")


def sample_result(operation: operations_pb2.Operation) -> SampleResult:
    message: sampling_pb2.SampleResponse = _expect(operation, "sample")
    topk = topk_rows(message.topk_prompt_logprobs) if message.HasField("topk_prompt_logprobs") else None
    return SampleResult(
        sequences=[_sequence(sequence, message.policy_version) for sequence in message.sequences],
        prompt_logprobs=_prompt_logprobs(message.prompt_logprobs) if message.prompt_logprobs else None,
        topk_prompt_logprobs=[row or None for row in topk] if topk is not None else None,
        policy_version=message.policy_version,
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
    )


def prompt_logprobs(operation: operations_pb2.Operation) -> list[float | None]:
    return _prompt_logprobs(_expect(operation, "sample").prompt_logprobs)


def _prompt_logprobs(data: bytes) -> list[float | None]:
    values: list[float | None] = np.frombuffer(data, dtype="<f4").tolist()
    return [None, *values[1:]]


def _sequence(message: sampling_pb2.SampledSequence, version: int) -> SampledSequence:
    tokens = np.frombuffer(message.tokens, dtype="<i4").tolist()
    versions = np.frombuffer(message.policy_versions, dtype="<i8").tolist()
    return SampledSequence(
        tokens=tokens,
        logprobs=np.frombuffer(message.logprobs, dtype="<f4").tolist(),
        stop_reason="stop" if message.stop_reason == "stop" else "length",
        policy_versions=versions or [version] * len(tokens),
        topk_logprobs=topk_rows(message.topk_logprobs) if message.HasField("topk_logprobs") else None,
    )


def topk_rows(message: sampling_pb2.TopkLogprobs) -> list[list[TokenLogprob]]:
    """[n, k] candidates; an empty row where a position has no distribution."""
    if not message.k:
        return []
    ids_nk: Sequence[Sequence[int]] = np.frombuffer(message.token_ids, dtype="<i4").reshape(-1, message.k).tolist()
    logprobs_nk: Sequence[Sequence[float]] = (
        np.frombuffer(message.logprobs, dtype="<f4").reshape(-1, message.k).tolist()
    )
    return [
        [(token, logprob) for token, logprob in zip(ids_k, logprobs_k, strict=True) if token >= 0]
        for ids_k, logprobs_k in zip(ids_nk, logprobs_nk, strict=True)
    ]


def operation_trace(message: training_pb2.OperationTrace) -> OperationTrace:
    return OperationTrace(
        operation_id=message.operation_id,
        verb=message.verb,
        failed=message.failed,
        submitted_at=datetime.fromtimestamp(message.submitted_at, UTC),
        queued_s=message.queued_s,
        phases_s=dict(message.phases_s),
        total_s=message.total_s,
        num_tokens=message.num_tokens,
        computed_s=message.computed_s,
        fused_with=tuple(message.fused_with),
    )


def lora_from_proto(message: common_pb2.LoraConfig) -> LoraConfig:
    return LoraConfig(
        rank=message.rank,
        alpha=message.alpha,
        dropout=message.dropout,
        target_modules=tuple(message.target_modules),
        train_attn=message.train_attn,
        train_mlp=message.train_mlp,
        train_unembed=message.train_unembed,
        use_rslora=message.use_rslora,
        use_dora=message.use_dora,
        value_head=message.value_head,
    )


def queued_operation(operation: operations_pb2.Operation) -> QueuedOperation:
    state: Literal["queued", "running", "finished"] = "finished"
    if operation.state == operations_pb2.OPERATION_STATE_QUEUED:
        state = "queued"
    elif operation.state == operations_pb2.OPERATION_STATE_RUNNING:
        state = "running"
    return QueuedOperation(operation.operation_id, operation.verb, state, operation.queue_place)


def ttl(ttl_seconds: int | None) -> int | None:
    """Returns it, or refuses it by name."""
    return None if ttl_seconds is None else whole_number("ttl_seconds", ttl_seconds, at_least=1)


def whole_number(field: str, value: int, *, at_least: int) -> int:
    """Returns it, or refuses it by name."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{field}: must be a whole number, not {type(value).__name__}")
    if not at_least <= value < 2**31:
        raise InvalidInputError(f"{value} is not at least {at_least} and below 2**31", field=field)
    return int(value)


def text_map(field: str, values: Mapping[str, str] | None) -> Mapping[str, str]:
    """Returns a mapping of texts to texts, or refuses it by name."""
    for key, value in (values or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{field}.{key}: keys and values must be text")
    return values or {}


def number(field: str, value: Any) -> float:
    """Returns it, or refuses it by name."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{field}: must be a number, not {type(value).__name__}")
    return float(value)
