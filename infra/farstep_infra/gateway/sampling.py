"""Samples over the Tinker wire: submitted to the sampler at once, each under its request id, and asked for by that id.

Nothing of a sample is kept here: the request id names its sampling session, that the sampler, and the sampler has the
outcome. Where a sampler lost it, or could not do it, the SDK is told that the promise is gone (410) and submits anew.
A sampler that is not there yet, or takes no more, is 429: the SDK waits and comes again, for as long as it takes.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.tables import SamplingSessionRow
from farstep_infra.gateway.bodies import Body, answer, media, refused
from farstep_infra.gateway.channel import Submission
from farstep_infra.gateway.failures import PREFIX, ErrorBody, Failure, Gone, category_of, failure_of, text_of
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Done, Failed, Pending, Result
from farstep_infra.gateway.sample_requests import Envelope, Sample, named_here, to_sample_request
from farstep_infra.gateway.sample_results import to_tinker
from farstep_infra.gateway.server_http import NotNow, Relayed
from farstep_proto import paths
from farstep_proto.errors import ApiError, Conflict, InvalidInput, NotFound, TooManyRequests
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_serving.bodies import bodies_of, read_body
from farstep_serving.descriptions import describe
from farstep_serving.keys import Caller, caller_of

MAX_BODY_BYTES = 128 << 20  # of JSON: the SDK holds 10 MiB of tokens at most, by its own reckoning of them
GATE_WAIT_S = 600.0  # for a version that is on its way
_RETRY_AFTER_S = 1.0
_PAUSE_S = 2.0  # of who asks for a sample while its sampler is away
_AGAIN = (408, 429, 502, 503, 504)  # outcomes that say nothing of the request itself


class AskSample(Envelope, Sample):
    """The body as a whole."""


class Promise(Body):
    request_id: str
    sample_sequence_ids: list[str]


@describe(
    "Submit a sample",
    takes=media(AskSample),
    gives=media(Promise),
    error=media(ErrorBody),
    errors=[NotFound, TooManyRequests],
)
async def _submit(request: Request) -> Response:
    raw = await read_body(request, limit=MAX_BODY_BYTES)
    caller, gateway = caller_of(request), gateway_of(request)
    envelope, asked = await bodies_of(request).decoded(len(raw), partial(_read, raw))
    row = await gateway.sampling_sessions.get(envelope.sampling_session_id, caller=caller)
    wanted = RequestId("sample", row.sampling_session_id, envelope.seq_id)
    match asked:
        case pb.SampleRequest():
            await _hand_over(gateway, row, wanted, asked)
        case InvalidInput():
            gateway.refusals.note(str(wanted), Failure(error=_told(asked), category="user"))
    is_refused = gateway.refusals.find(str(wanted)) is not None  # there is no telling how many it claimed to want
    sequences = range(0 if is_refused else envelope.num_samples)
    return answer(Promise(request_id=str(wanted), sample_sequence_ids=[f"{wanted}:{index}" for index in sequences]))


async def result_of(gateway: Gateway, wanted: RequestId, *, caller: Caller, wait_s: float) -> Result:
    """What has become of a sample.

    Raises:
        NotFound: the caller has no such sampling session.
        Gone: the sampler does not know it, or could not do it: it is to be submitted again.
    """
    row = await gateway.sampling_sessions.get(wanted.owner, caller=caller)
    if (failure := gateway.refusals.find(str(wanted))) is not None:
        return Failed(failure)
    try:
        channel = gateway.channels.of(await gateway.samplers.url_of(row))
        outcome = await channel.outcome(str(wanted), wait_s=wait_s)
    except (TooManyRequests, NotNow) as error:
        await gateway.samplers.wake(row)
        await asyncio.sleep(min(wait_s, _PAUSE_S))
        return Pending("paused_capacity", error.message)
    except NotFound as error:
        raise _gone(wanted, error.message) from error
    except ApiError as error:
        return Failed(Failure(error=_told(error), category=category_of(error.status)))
    if outcome is None:
        return Pending("paused_capacity", channel.trouble) if channel.trouble else Pending()
    fetched = partial(channel.fetched, str(wanted))
    if outcome.WhichOneof("outcome") == "sample":
        return Done(to_tinker(outcome.sample), fetched)
    if outcome.error.status in _AGAIN:
        fetched()
        raise _gone(wanted, outcome.error.message)
    outcome.error.field = named_here(outcome.error.field) or ""
    return Failed(failure_of(outcome.error), fetched)


async def cancel(gateway: Gateway, wanted: RequestId, *, caller: Caller) -> bool:
    """Gives a sample up; whether it had not ended."""
    row = await gateway.sampling_sessions.get(wanted.owner, caller=caller)
    try:
        channel = gateway.channels.of(await gateway.samplers.url_of(row))
        return await channel.cancel(str(wanted), project=row.project)
    except (NotFound, TooManyRequests, NotNow, Relayed):  # there is nothing to give up
        return False


def _read(raw: bytes) -> tuple[Envelope, pb.SampleRequest | InvalidInput]:
    """A mistake that a future can tell of is returned. Raises InvalidInput where there is no telling whose it is."""
    try:
        body: Any = from_json(raw)
        envelope = Envelope.model_validate(body)
    except ValidationError as error:
        raise refused(error) from error
    except ValueError as error:
        raise InvalidInput(f"it is no JSON: {error}", field="body") from error
    try:
        return envelope, to_sample_request(body)
    except InvalidInput as error:
        return envelope, error


async def _hand_over(gateway: Gateway, row: SamplingSessionRow, wanted: RequestId, request: pb.SampleRequest) -> None:
    """Submits a sample; what the sampler refuses becomes a future that failed.

    Raises:
        TooManyRequests: no sampler takes it now.
        InvalidInput: another sample has been submitted under that number.
    """
    request.run_id, request.model_path = row.run_id, row.model_path
    request.client_id, request.gate_wait_s = row.session_id, GATE_WAIT_S
    request.in_flight = "switch" if row.kind == "inflight" else ""
    try:
        url = await gateway.samplers.url_of(row)
        try:
            await gateway.channels.of(url).submit(_submission(row, wanted, request), within_s=0)
        except Relayed as error:
            if not _is_scored_alone(request, error):
                raise
            request.params.max_tokens = 0
            await gateway.channels.of(url).submit(_submission(row, wanted, request), within_s=0)
    except NotNow as error:
        await gateway.samplers.wake(row)
        raise TooManyRequests(error.message, retry_after_s=_RETRY_AFTER_S) from error
    except TooManyRequests:
        raise
    except ApiError as error:
        if error.status == Conflict.status:
            raise InvalidInput(f"another sample has the number {wanted.seq}", field="seq_id") from error
        gateway.refusals.note(str(wanted), Failure(error=_told(error), category=category_of(error.status)))


def _submission(row: SamplingSessionRow, wanted: RequestId, request: pb.SampleRequest) -> Submission:
    path = f"{paths.SAMPLES}?key={wanted}"
    return Submission(str(wanted), path, [request.SerializeToString()], row.project, headers=_gate(row))


def _is_scored_alone(request: pb.SampleRequest, error: ApiError) -> bool:
    """Whether a prompt fills the context, and the one token that the SDK wants beside its scores is for nothing."""
    return error.field == "params.max_tokens" and request.params.max_tokens == 1 and request.include_prompt_logprobs


def _gate(row: SamplingSessionRow) -> dict[str, str]:
    """Which version of its run a session is about; checkpoints and the base model have none."""
    if not row.run_id or row.policy_version is None:
        return {}
    is_moving = row.kind == "inflight"
    return {paths.MIN_POLICY_VERSION if is_moving else paths.EXACT_POLICY_VERSION: str(row.policy_version)}


def _gone(wanted: RequestId, why: str) -> Gone:
    return Gone(f"sample {wanted} is to be submitted again: {why}", field="request_id")


def _told(error: ApiError) -> str:
    told = error.to_proto()
    told.field = named_here(told.field) or ""
    return text_of(told)


ROUTES = [Route(f"{PREFIX}asample", _submit, methods=["POST"])]
