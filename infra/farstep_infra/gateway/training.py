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
from farstep_infra.gateway.pass_heads import HEAD_BYTES, PassHead, read_head
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Done, Promised, Result
from farstep_proto import paths
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.paths import Verb
from farstep_proto.v1 import tinker_pb2, training_pb2
from farstep_serving.bodies import bodies_of, declared_bytes
from farstep_serving.descriptions import Media, describe
from farstep_serving.keys import Caller, caller_of
from farstep_serving.large_messages import check_large

MAX_PASS_BYTES = 72 << 20  # as much as a trainer takes, unless it is told otherwise
_USUAL_BYTES = 32 << 20  # twice what the SDK is asked to send at once: it does not count names and spans
_PART_BYTES = 7 << 20  # below what a trainer takes in one request, unless it is of one datum
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
    bodies, encoding = bodies_of(request), request.headers.get("content-encoding", "")
    if declared_bytes(request) > MAX_PASS_BYTES:
        head = read_head(await bodies.head(request, num_bytes=HEAD_BYTES))
        if head is not None:
            return answer(await _refused(request, head))
    async with bodies.held(request, limit=MAX_PASS_BYTES, encodings=compression.TAKEN) as raw:
        # What is compressed may be opened to anything: as if it were as large as it can be.
        decoded = partial(bodies.decoded, MAX_PASS_BYTES if encoding else len(raw))
        body = await decoded(lambda: compression.decompressed(raw, encoding, limit=MAX_PASS_BYTES)) if encoding else raw
        read = [await decoded(lambda: _parse(body))]
        sparse_bytes = data.dense_bytes(read[0])
        with bodies.grown(len(body) - len(raw) + sparse_bytes):
            wanted = RequestId.of_model(read[0].model_id, read[0].seq_id)
            # Popped: what was read is not needed once it is translated.
            call = partial(bodies.decoded, len(body) + sparse_bytes, lambda: _pass(read.pop()))
            return answer(await promise(gateway_of(request), wanted, call, caller=caller_of(request)))


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


async def _refused(request: Request, head: PassHead) -> Promised:
    """The promise of a pass that is too large: it is known whose it is, and is told as any mistake."""

    async def refuse() -> Call:
        raise head.refusal(MAX_PASS_BYTES)

    wanted = RequestId.of_model(head.model_id, head.seq_id)
    return await promise(gateway_of(request), wanted, refuse, caller=caller_of(request))


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
    check_large(raw, tinker_pb2.ForwardBackwardRequest, usual_bytes=_USUAL_BYTES)
    try:
        return tinker_pb2.ForwardBackwardRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidInput(f"the body is not a ForwardBackwardRequest: {error}", field="body") from error


def _pass(message: tinker_pb2.ForwardBackwardRequest) -> Call:
    request = data.to_forward_request(message)
    verb = Verb.FORWARD if message.forward_only else Verb.FORWARD_BACKWARD
    if request.ByteSize() <= _PART_BYTES:
        return Call.of(verb, request)
    if len(request.data) == 1:
        return Call(verb, [encoded(request)], [0])
    first_data, parts = zip(*_parts(request), strict=True)
    return Call(verb, parts, first_data)


def _parts(request: training_pb2.ForwardRequest) -> Iterator[tuple[int, bytes]]:
    """The same data in requests of at most `_PART_BYTES`, or one datum, each with the number of its first.

    What belongs together stays so.
    """
    frame = training_pb2.ForwardRequest()
    frame.CopyFrom(request)
    frame.ClearField("data")
    spec = LOSS_TABLE.get(request.loss_fn)
    num_together = spec.num_data if spec is not None else 1
    part, num_bytes, first = training_pb2.ForwardRequest(), frame.ByteSize(), 0
    for start in range(0, len(request.data), num_together):
        together = request.data[start : start + num_together]
        added = sum(datum.ByteSize() + _FRAME_BYTES for datum in together)
        if part.data and num_bytes + added > _PART_BYTES:
            part.MergeFrom(frame)
            yield first, encoded(part)
            part, num_bytes, first = training_pb2.ForwardRequest(), frame.ByteSize(), start
        part.data.extend(together)
        num_bytes += added
    part.MergeFrom(frame)
    yield first, encoded(part)


ROUTES = [
    Route(f"{PREFIX}forward_backward", _forward_backward, methods=["POST"]),
    Route(f"{PREFIX}optim_step", _optim_step, methods=["POST"]),
]
