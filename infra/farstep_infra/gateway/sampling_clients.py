"""Sampling clients as the Tinker SDK makes, joins and looks at them: each is a sampling session.

Nobody waits here for a sampler: it comes up in the background, and the first sample is taken as soon as it is there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.request_ids import MAX_SAMPLING_SESSIONS
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import CheckpointPath
from farstep_serving.descriptions import describe
from farstep_serving.keys import Caller, caller_of


class CreateSamplingSession(Body):
    session_id: str
    sampling_session_seq_id: Annotated[int, Field(ge=0, lt=MAX_SAMPLING_SESSIONS)]
    base_model: str | None = None
    model_path: str | None = None


class CreatedSamplingSession(Body):
    sampling_session_id: str
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinSamplingSession(Body):
    sampling_session_id: str


class JoinedSamplingSession(Body):
    client_counter: int
    type: Literal["join_sampling_session"] = "join_sampling_session"


class SamplerRecord(Body):
    sampler_id: str
    base_model: str
    model_path: str | None = None


@describe(
    "Open a sampling session",
    takes=media(CreateSamplingSession),
    gives=media(CreatedSamplingSession),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _create(request: Request) -> Response:
    asked = await read_json(request, CreateSamplingSession)
    gateway, caller = gateway_of(request), caller_of(request)
    session = await gateway.control.sessions.get(asked.session_id, caller=caller)
    if session.HasField("closed_at"):
        raise InvalidInput(f"session {asked.session_id} is closed", field="session_id")
    path = _path(asked)
    base_model = asked.base_model or ""
    if path is not None:
        base_model = await _base_model(gateway, path, base_model, caller=caller)
    else:
        gateway.control.fleet.served.check_served(base_model)
    sampling_session_id = await gateway.sampling_sessions.enter(
        asked.session_id,
        asked.sampling_session_seq_id,
        project=session.project,
        base_model=base_model,
        model_path="" if path is None else str(path),
    )
    await gateway.samplers.begin(await gateway.sampling_sessions.get(sampling_session_id, caller=caller))
    return answer(CreatedSamplingSession(sampling_session_id=sampling_session_id))


@describe(
    "Get a number of one's own in a sampling session",
    takes=media(JoinSamplingSession),
    gives=media(JoinedSamplingSession),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _join(request: Request) -> Response:
    asked = await read_json(request, JoinSamplingSession)
    number = await gateway_of(request).sampling_sessions.join(asked.sampling_session_id, caller=caller_of(request))
    return answer(JoinedSamplingSession(client_counter=number))


@describe("Look at a sampling session", gives=media(SamplerRecord), error=media(ErrorBody))
async def _get(request: Request) -> Response:
    sampling_session_id = request.path_params["sampling_session_id"]
    row = await gateway_of(request).sampling_sessions.get(sampling_session_id, caller=caller_of(request))
    return answer(
        SamplerRecord(
            sampler_id=row.sampling_session_id,
            base_model=row.base_model,
            model_path=CheckpointPath.parse(row.model_path).tinker_path if row.model_path else None,
        )
    )


def _path(asked: CreateSamplingSession) -> CheckpointPath | None:
    """Raises InvalidInput: neither a model nor a checkpoint, or one that no sampler loads."""
    if not asked.model_path:
        if not asked.base_model:
            raise InvalidInput("give base_model or model_path", field="base_model")
        return None
    path = CheckpointPath.parse(asked.model_path, field="model_path")
    if path.kind != "sampler_weights":
        raise InvalidInput(
            f"{asked.model_path} is not for sampling",
            field="model_path",
            hint="save_weights_for_sampler makes …/sampler_weights/<name>",
        )
    return path


async def _base_model(gateway: Gateway, path: CheckpointPath, wanted: str, *, caller: Caller) -> str:
    """Of a checkpoint that the caller may see, by the name that was asked for or that programs know.

    Raises:
        NotFound: there is none.
        InvalidInput: it is of another model than `wanted`.
    """
    control, served = gateway.control, gateway.control.fleet.served
    owns_unmarked = not caller.is_operator and await control.runs.exists(path.run_id, caller=caller)
    try:
        checkpoint = await control.checkpoints.seen_by(caller, owns_unmarked=owns_unmarked).get(path)
    except NotFound as error:
        raise NotFound(error.message, field="model_path") from error
    if wanted and served.resolve(wanted) != served.resolve(checkpoint.base_model):
        raise InvalidInput(f"the checkpoint is of {checkpoint.base_model!r}, not of {wanted!r}", field="base_model")
    served.check(checkpoint.base_model)
    return wanted or await control.runs.model_name(path.run_id, checkpoint.base_model)


ROUTES = [
    Route(f"{PREFIX}create_sampling_session", _create, methods=["POST"]),
    Route(f"{PREFIX}join_sampling_session", _join, methods=["POST"]),
    Route(f"{PREFIX}samplers/{{sampling_session_id}}", _get, methods=["GET"]),
]
