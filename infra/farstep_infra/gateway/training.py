"""Training operations over the Tinker wire: forward and backward passes, and optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

from google.protobuf.message import DecodeError
from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway import compression, data, optimizers, outputs, saving
from farstep_infra.gateway.bodies import MAX_OPERATION_BYTES, Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.operations import Call, Ended, encoded, outcome_of, promise
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Done, Promised, Result
from farstep_proto import paths
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.paths import Verb
from farstep_proto.v1 import tinker_pb2, training_pb2
from farstep_serving.bodies import bodies_of, read_body
from farstep_serving.descriptions import Media, describe
from farstep_serving.keys import Caller, caller_of

_PART_BYTES = 7 << 20  # below what a trainer takes in one request
_FRAME_BYTES = 16  # a datum's tag and length, at most
_BINARY = Media({paths.PROTOBUF: {"type": "string", "format": "binary"}})


class OptimStep(Body):
    """With `adam_params` or `optimizer_params`, which `optimizers` reads."""

    model_config = ConfigDict(extra="allow")

    model_id: str
    seq_id: int


class OptimStepped(Body):
    metrics: Mapping[str, float]
    type: Literal["optim_step"] = "optim_step"


@describe(
    "Submit a pass of a Tinker model", takes=_BINARY, gives=media(Promised), error=media(ErrorBody), errors=[NotFound]
)
async def _forward_backward(request: Request) -> Response:
    raw = await read_body(request, limit=MAX_OPERATION_BYTES, encodings=compression.TAKEN)
    encoding = request.headers.get("content-encoding", "")
    decoded = partial(bodies_of(request).decoded, len(raw))
    message = await decoded(lambda: _parse(compression.decompressed(raw, encoding, limit=MAX_OPERATION_BYTES)))
    wanted = RequestId.of_model(message.model_id, message.seq_id)
    caller = caller_of(request)
    return answer(await promise(gateway_of(request), wanted, lambda: decoded(lambda: _pass(message)), caller=caller))


@describe(
    "Submit an optimizer step of a Tinker model",
    takes=media(OptimStep),
    gives=media(Promised),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _optim_step(request: Request) -> Response:
    asked = await read_json(request, OptimStep, limit=MAX_OPERATION_BYTES)

    async def step() -> Call:
        return Call.of(Verb.OPTIM_STEP, optimizers.to_optim_step(asked.model_extra or {}))

    wanted = RequestId.of_model(asked.model_id, asked.seq_id)
    return answer(await promise(gateway_of(request), wanted, step, caller=caller_of(request)))


async def result_of(gateway: Gateway, wanted: RequestId, *, caller: Caller, wait_s: float) -> Result:
    """What has become of an operation of a training run.

    Raises:
        NotFound: the caller has no such model.
        Gone: the operation is no longer known.
    """
    ended = await outcome_of(gateway, wanted, caller=caller, wait_s=wait_s)
    if not isinstance(ended, Ended):
        return ended
    operation = ended.operation
    match operation.WhichOneof("outcome"):
        case "forward_backward":
            return Done(outputs.to_tinker(operation.forward_backward), ended.on_told)
        case "optim_step":
            return Done(OptimStepped(metrics=outputs.optim_metrics(operation.optim_step)), ended.on_told)
        case _:
            return Done(await saving.saved(gateway, wanted, operation), ended.on_told)


def _parse(raw: bytes) -> tinker_pb2.ForwardBackwardRequest:
    try:
        return tinker_pb2.ForwardBackwardRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidInput(f"the body is not a ForwardBackwardRequest: {error}", field="body") from error


def _pass(message: tinker_pb2.ForwardBackwardRequest) -> Call:
    request = data.to_forward_request(message)
    verb = Verb.FORWARD if message.forward_only else Verb.FORWARD_BACKWARD
    whole = encoded(request)
    return Call(verb, [whole] if len(whole) <= _PART_BYTES else list(_parts(request)))


def _parts(request: training_pb2.ForwardRequest) -> Iterator[bytes]:
    """The same data in requests of at most `_PART_BYTES`, or one datum; what belongs together stays so."""
    frame = training_pb2.ForwardRequest()
    frame.CopyFrom(request)
    frame.ClearField("data")
    spec = LOSS_TABLE.get(request.loss_fn)
    num_together = spec.num_data if spec is not None else 1
    part, num_bytes = training_pb2.ForwardRequest(), frame.ByteSize()
    for start in range(0, len(request.data), num_together):
        together = request.data[start : start + num_together]
        added = sum(datum.ByteSize() + _FRAME_BYTES for datum in together)
        if part.data and num_bytes + added > _PART_BYTES:
            part.MergeFrom(frame)
            yield encoded(part)
            part, num_bytes = training_pb2.ForwardRequest(), frame.ByteSize()
        part.data.extend(together)
        num_bytes += added
    part.MergeFrom(frame)
    yield encoded(part)


ROUTES = [
    Route(f"{PREFIX}forward_backward", _forward_backward, methods=["POST"]),
    Route(f"{PREFIX}optim_step", _optim_step, methods=["POST"]),
]
