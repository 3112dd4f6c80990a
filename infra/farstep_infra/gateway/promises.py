"""Promises: asked for by their request ids, answered as soon as the server that does the work has an outcome.

A promise is its request id and nothing more: who asks is led to the operation that it names, on the server that has it.
So every promise outlives this process, and those of a trainer's journal the trainer's. Only submissions that no server
took are remembered here (`refusals`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Literal

from google.protobuf.message import Message
from pydantic import Field
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway import losses, models, sampling, training
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody, Failure, Gone, failure_of
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Done, Failed, Pending, Result
from farstep_proto import paths
from farstep_proto.errors import ApiError, InvalidInput, NotFound, Unavailable
from farstep_serving.bodies import INLINE_BYTES
from farstep_serving.descriptions import Media, describe
from farstep_serving.keys import Caller, caller_of

log = logging.getLogger(__name__)

HOLD_S = 30.0  # the SDK gives up waiting for an answer after 45
PAUSE_S = 2.0  # where it would ask again at once
METADATA_FROM_BYTES = 8 << 20  # larger results are announced, so that a client can make room for them


class RetrieveFuture(Body):
    request_id: str
    allow_metadata_only: bool = False


class TryAgain(Body):
    request_id: str
    queue_state: str
    queue_state_reason: str | None = None
    type: Literal["try_again"] = "try_again"


class CompleteMetadata(Body):
    response_payload_size: int
    status: Literal["complete_metadata"] = "complete_metadata"


class Cancel(Body):
    request_id: str


class Cancelled(Body):
    cancelled: bool
    type: Literal["cancel_future"] = "cancel_future"


class SamplingSessionTarget(Body):
    sampling_session_id: str
    cloned_sampler_id: Annotated[int, Field(ge=0)] = 0
    type: Literal["sampling_session"] = "sampling_session"


class RetrieveFutures(Body):
    target: SamplingSessionTarget
    prev_cursor: Annotated[int, Field(ge=0, lt=2**63)] = 0
    timeout: Annotated[float, Field(ge=0)] | None = None


class FutureCompletion(Body):
    state: Literal["finished", "failed"]
    request_id: str
    response_payload_uncompressed_size: int | None = None


class FutureCompletions(Body):
    completions: list[FutureCompletion]
    cursor: int


_ANY = Media({paths.JSON: {"type": "object"}, paths.PROTOBUF: {"type": "string", "format": "binary"}})


@describe(
    "Wait for what a promise comes to",
    takes=media(RetrieveFuture),
    gives=_ANY,
    error=media(ErrorBody),
    errors=[NotFound, Gone],
)
async def _retrieve(request: Request) -> Response:
    asked = await read_json(request, RetrieveFuture)
    result = await calm_result_of(gateway_of(request), asked.request_id, caller=caller_of(request))
    match result:
        case Pending():
            body = TryAgain(
                request_id=asked.request_id, queue_state=result.state, queue_state_reason=result.reason or None
            )
            return answer(body, status=408)
        case Failed():
            response = answer(result.failure)
            response.background = BackgroundTask(result.on_told)
            return response
        case Done(body=Message() as message):
            return await _as_protobuf(message, result.on_told, may_announce=asked.allow_metadata_only)
        case Done(body=Body() as told):
            response = answer(told)
            response.background = BackgroundTask(result.on_told)
            return response
    raise AssertionError(result)


@describe(
    "Wait until any of a sampling session's promises ends",
    takes=media(RetrieveFutures),
    gives=media(FutureCompletions),
    error=media(ErrorBody),
    errors=[NotFound, Gone],
)
async def _retrieve_all(request: Request) -> Response:
    asked = await read_json(request, RetrieveFutures)
    gateway, target = gateway_of(request), asked.target
    await gateway.sampling_sessions.get(target.sampling_session_id, caller=caller_of(request))
    ended, cursor = await gateway.completions.after(
        target.sampling_session_id,
        target.cloned_sampler_id,
        cursor=asked.prev_cursor,
        wait_s=HOLD_S if asked.timeout is None else min(asked.timeout, HOLD_S),
    )
    told = [
        FutureCompletion(
            state="failed" if each.failed else "finished",
            request_id=each.request_id,
            response_payload_uncompressed_size=each.num_bytes or None,
        )
        for each in ended
    ]
    return answer(FutureCompletions(completions=told, cursor=cursor))


@describe(
    "Give up a promise", takes=media(Cancel), gives=media(Cancelled), error=media(ErrorBody), errors=[NotFound, Gone]
)
async def _cancel(request: Request) -> Response:
    asked = await read_json(request, Cancel)
    gateway, caller = gateway_of(request), caller_of(request)
    wanted = RequestId.parse(asked.request_id)
    if wanted.kind != "sample":
        raise InvalidInput("only samples can be cancelled", field="request_id")
    return answer(Cancelled(cancelled=await sampling.cancel(gateway, wanted, caller=caller)))


async def calm_result_of(gateway: Gateway, request_id: str, *, caller: Caller, pause_s: float = PAUSE_S) -> Result:
    """As `result_of`, without what the SDK would answer by asking again at once and for ever: any 5xx.

    What is away for a while is a promise that is pending, told after a pause; a mistake of ours is one that failed.
    """
    try:
        return await result_of(gateway, request_id, caller=caller, wait_s=HOLD_S)
    except ApiError as error:
        if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        if not isinstance(error, Unavailable):
            return Failed(failure_of(error.to_proto()))
        await asyncio.sleep(pause_s)
        return Pending("paused_capacity", error.message)
    except Exception:
        log.exception("looking for what became of %s", request_id)
        return Failed(Failure(error="the server made a mistake; its log has the details", category="server"))


async def result_of(gateway: Gateway, request_id: str, *, caller: Caller, wait_s: float) -> Result:
    """What has become of a promise, waiting for it up to `wait_s` seconds.

    Raises:
        NotFound: the caller has no such promise.
        Gone: it had come to something, and nobody fetched it for too long.
    """
    wanted = RequestId.parse(request_id)
    match wanted.kind:
        case "train" if wanted.seq == 0:
            return await models.result_of(gateway, wanted, caller=caller, wait_s=wait_s)
        case "train":
            return await training.result_of(gateway, wanted, caller=caller, wait_s=wait_s)
        case "sample":
            return await sampling.result_of(gateway, wanted, caller=caller, wait_s=wait_s)
    return await losses.result_of(gateway, wanted, caller=caller)


async def _as_protobuf(message: Message, on_told: Callable[[], None], *, may_announce: bool) -> Response:
    num_bytes = message.ByteSize()
    if may_announce and num_bytes >= METADATA_FROM_BYTES:
        return answer(CompleteMetadata(response_payload_size=num_bytes))
    encode = message.SerializeToString
    content = encode() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(encode)
    response = Response(content, media_type=paths.PROTOBUF)
    response.background = BackgroundTask(on_told)
    return response


ROUTES = [
    Route(f"{PREFIX}retrieve_future", _retrieve, methods=["POST"]),
    Route(f"{PREFIX}retrieve_futures", _retrieve_all, methods=["POST"]),
    Route(f"{PREFIX}cancel_future", _cancel, methods=["POST"]),
]
