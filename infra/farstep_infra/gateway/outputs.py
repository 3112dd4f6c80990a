"""Our trainer's results as the Tinker SDK reads them.

A batched record has one field of many data end to end, with offsets; data whose fields differ in more than length go
into another record. Metrics are renamed to `name:reduction`, with one colon and a reduction that the SDK has: it raises
at any other number of colons, and drops what it cannot reduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby

import numpy as np
from google.protobuf.message import Message

from farstep_proto.v1 import common_pb2, tinker_pb2, training_pb2

_REDUCTIONS = frozenset({"mean", "sum", "min", "max", "slack", "hash2", "unique"})
_DTYPES: Mapping[int, tinker_pb2.DType] = {
    common_pb2.DTYPE_FLOAT32: tinker_pb2.DTYPE_FLOAT32,
    common_pb2.DTYPE_INT64: tinker_pb2.DTYPE_INT64,
}
_STEP_REDUCTIONS = {"step": "max"}

# What the fields of data must have alike to share a record: of each its name, dtype and all sizes but the first.
Form = tuple[tuple[str, int, tuple[int, ...]], ...]


def to_tinker(output: training_pb2.ForwardBackwardOutput) -> tinker_pb2.ForwardBackwardOutput:
    """The result of `forward_backward`; `loss:sum` is always among its metrics."""
    message = tinker_pb2.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    for form, group in groupby(output.loss_fn_outputs, key=_form):
        _record(form, list(group), message.loss_fn_outputs.add())
    message.metrics["loss:sum"] = 0.0
    message.metrics.update(reducible(output.metrics))
    return message


def optim_metrics(response: training_pb2.OptimStepResponse) -> dict[str, float]:
    """The metrics of an optimizer step."""
    return {
        _with_reduction(name, _STEP_REDUCTIONS.get(name, "mean")): value for name, value in response.metrics.items()
    }


def reducible(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics by names that the SDK can combine; what has another reduction becomes a mean of that name."""
    return {_with_reduction(name, "mean"): value for name, value in metrics.items()}


def to_bytes(message: Message) -> bytes:
    """The same message is the same bytes."""
    return bytes(message.SerializeToString(deterministic=True))


def _with_reduction(name: str, default: str) -> str:
    what, _, reduction = name.rpartition(":")
    if what and reduction in _REDUCTIONS:
        return f"{what.replace(':', '_')}:{reduction}"
    return f"{name.replace(':', '_')}:{default}"


def _form(output: training_pb2.DatumOutput) -> Form:
    return tuple(
        (name, tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in sorted(output.fields.items(), key=_name)
    )


def _name(field: tuple[str, common_pb2.Tensor]) -> str:
    return field[0]


def _record(form: Form, data: Sequence[training_pb2.DatumOutput], record: tinker_pb2.ArrayRecord) -> None:
    names = [name for name, _, _ in form]
    record.type_tag = "logprobs" if "logprobs" in names else "".join(names[:1])
    record.num_datums = len(data)
    for name, dtype, trailing_shape in form:
        blobs = [datum.fields[name].data for datum in data]
        field = record.fields[name]
        field.data = b"".join(blobs)
        field.offsets = _offsets(map(len, blobs))
        field.dtype = _DTYPES[dtype]
        field.trailing_shape.extend(trailing_shape)


def _offsets(num_bytes: Iterable[int]) -> bytes:
    """Where each begins, and where the last one ends."""
    return np.fromiter(accumulate(num_bytes, initial=0), dtype="<i8").tobytes()
