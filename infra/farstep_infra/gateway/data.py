"""What the Tinker SDK sends to be trained on, as our own request: chunks, tensors, settings.

It refuses to judge whether data fits its loss, which the trainer does, and the same for everybody. It only refuses what
cannot be said in our words: unknown kinds of numbers and chunks, sparse tensors that are none, settings of another
kind. Blobs are the same bytes on both wires, so that nothing is done by the element.

Invariant: what comes out is as large as what came in, but for sparse tensors, which together may grow to
`MAX_DENSE_BYTES`.
"""

from __future__ import annotations

import math

import numpy as np

from farstep_infra.gateway.custom_loss import custom_loss_of
from farstep_infra.gateway.spans import sampled_weights
from farstep_infra.gateway.sparse import DenseBudget, densify
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2, tinker_pb2, training_pb2

MAX_DENSE_BYTES = 128 << 20

# What needs no conversion at all.
_SAME: dict[int, common_pb2.DType] = {
    tinker_pb2.DTYPE_FLOAT32: common_pb2.DTYPE_FLOAT32,
    tinker_pb2.DTYPE_INT64: common_pb2.DTYPE_INT64,
}
_ITEM_BYTES = {
    tinker_pb2.DTYPE_FLOAT32: 4,
    tinker_pb2.DTYPE_INT64: 8,
    tinker_pb2.DTYPE_INT32: 4,
    tinker_pb2.DTYPE_BFLOAT16: 2,
}


def to_forward_request(message: tinker_pb2.ForwardBackwardRequest) -> training_pb2.ForwardRequest:
    """The body of `forward` (where `forward_only` is set) or `forward_backward`.

    Raises:
        InvalidInput: naming the field, as `data[3].loss_fn_inputs.weights`.
    """
    request = training_pb2.ForwardRequest(loss_fn=message.loss_fn)
    _settings(message, request)
    budget = DenseBudget(MAX_DENSE_BYTES)
    for index, datum in enumerate(message.data):
        _datum(datum, request.data.add(), budget, loss_fn=message.loss_fn, field=f"data[{index}]")
    return request


def dense_bytes(message: tinker_pb2.ForwardBackwardRequest) -> int:
    """What its sparse tensors claim to be when they are dense; `MAX_DENSE_BYTES` where it is more, which is refused."""
    claimed = 0
    for datum in message.data:
        for tensor in datum.loss_fn_inputs.values():
            if tensor.HasField("sparse_csr"):
                claimed += max(0, math.prod(tensor.shape)) * _ITEM_BYTES.get(tensor.dtype, 0)
    return min(claimed, MAX_DENSE_BYTES)


def _settings(message: tinker_pb2.ForwardBackwardRequest, request: training_pb2.ForwardRequest) -> None:
    """From the second map where it is there; the first one has the numbers of the same, for older servers."""
    if not message.loss_fn_config_v2:
        request.loss_fn_config.update(message.loss_fn_config)
    texts = {}
    for key, value in message.loss_fn_config_v2.items():
        if value.WhichOneof("value") == "text":
            texts[key] = value.text
        else:
            request.loss_fn_config[key] = value.number
    if message.loss_fn == "custom":
        if "loss_id" not in texts:
            raise InvalidInput("missing", field="loss_fn_config.loss_id", hint="the id that create_custom_loss gave")
        request.custom_loss.CopyFrom(custom_loss_of(texts.pop("loss_id")))
    for key, text in texts.items():
        raise InvalidInput(f"{text!r} is not a number", field=f"loss_fn_config.{key}")


def _datum(datum: tinker_pb2.Datum, ours: common_pb2.Datum, budget: DenseBudget, *, loss_fn: str, field: str) -> None:
    for index, chunk in enumerate(datum.model_input):
        _chunk(chunk, ours.model_input.chunks.add(), field=f"{field}.model_input.chunks[{index}]")
    for key, tensor in datum.loss_fn_inputs.items():
        _tensor(tensor, ours.loss_fn_inputs[key], budget, field=f"{field}.loss_fn_inputs.{key}")
    if loss_fn == "stable_reinforce" and datum.loss_fn_input_spans:
        weights = sampled_weights(datum, ours, field=field)
        ours.loss_fn_inputs["weights"].CopyFrom(weights)


def _chunk(chunk: tinker_pb2.Chunk, ours: common_pb2.Chunk, *, field: str) -> None:
    match chunk.WhichOneof("chunk"):
        case "encoded_text":
            ours.encoded_text.tokens = chunk.encoded_text.tokens
        case "image":
            ours.image.data = chunk.image.data
            ours.image.format = chunk.image.format
            if chunk.image.HasField("expected_tokens"):
                ours.image.expected_tokens = chunk.image.expected_tokens
        case "dmel":
            raise InvalidInput("no model here takes audio", field=field)
        case _:
            raise InvalidInput("a chunk of no known kind", field=field, hint="encoded_text")


def _tensor(tensor: tinker_pb2.Tensor, ours: common_pb2.Tensor, budget: DenseBudget, *, field: str) -> None:
    item_bytes = _ITEM_BYTES.get(tensor.dtype)
    if item_bytes is None:
        raise InvalidInput(
            f"{tensor.dtype} is no dtype", field=f"{field}.dtype", hint="float32, int64, int32 or bfloat16"
        )
    if tensor.HasField("sparse_csr"):
        data = densify(tensor.sparse_csr, tuple(tensor.shape), item_bytes=item_bytes, budget=budget, field=field)
    else:
        data = tensor.dense
    if len(data) % item_bytes:
        raise InvalidInput(
            f"{len(data)} bytes are not a whole number of {item_bytes}-byte elements", field=f"{field}.data"
        )
    ours.shape.extend(tensor.shape)
    if tensor.dtype in _SAME:
        ours.dtype, ours.data = _SAME[tensor.dtype], data
    elif tensor.dtype == tinker_pb2.DTYPE_INT32:
        ours.dtype, ours.data = common_pb2.DTYPE_INT64, np.frombuffer(data, "<i4").astype("<i8").tobytes()
    else:  # bfloat16 is the upper half of a float32
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        ours.dtype, ours.data = common_pb2.DTYPE_FLOAT32, bits.tobytes()
