"""Saving over the Tinker wire: training states, weights for samplers, and weights to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control import requests
from farstep_infra.gateway.bodies import MAX_OPERATION_BYTES, Body, answer, media, read_json
from farstep_infra.gateway.checkpoints_api import MAX_TTL_S, MIN_TTL_S
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.models import LoadedWeights
from farstep_infra.gateway.operations import Call, promise
from farstep_infra.gateway.request_ids import MAX_SAMPLING_SESSIONS, RequestId
from farstep_infra.gateway.results import Promised
from farstep_infra.gateway.sampling_sessions import sampling_session_id_of
from farstep_infra.gateway.sessions import metadata_of
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import CheckpointPath, check_name
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2, training_pb2
from farstep_serving.descriptions import describe
from farstep_serving.keys import OPERATOR, caller_of


class SaveWeights(Body):
    model_id: str
    seq_id: int
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, Any] | None = None


class SaveForSampler(Body):
    """Under a name, or as a sampling session of that number."""

    model_id: str
    seq_id: int
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: str = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, Any] | None = None


class SaveExternal(Body):
    model_id: str
    seq_id: int
    path: str
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None


class SavedWeights(Body):
    path: str
    type: Literal["save_weights"] = "save_weights"


class SavedForSampler(Body):
    path: str | None = None
    sampling_session_id: str | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SavedExternal(Body):
    path: str
    size_bytes: int | None = None
    type: Literal["save_weights_external"] = "save_weights_external"


@describe(
    "Save a Tinker model's state",
    takes=media(SaveWeights),
    gives=media(Promised),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _save(request: Request) -> Response:
    asked = await read_json(request, SaveWeights, limit=MAX_OPERATION_BYTES)

    async def save() -> Call:
        message = training_pb2.SaveStateRequest(
            name=_name(asked.path),
            metadata=_metadata(asked.user_metadata),
            ttl_seconds=_ttl(asked.ttl_seconds),
            overwrite=asked.overwrite,
        )
        return Call.of(Verb.SAVE_STATE, message)

    wanted = RequestId.of_model(asked.model_id, asked.seq_id)
    return answer(await promise(gateway_of(request), wanted, save, caller=caller_of(request)))


@describe(
    "Save a Tinker model's weights for samplers",
    takes=media(SaveForSampler),
    gives=media(Promised),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _save_for_sampler(request: Request) -> Response:
    asked = await read_json(request, SaveForSampler, limit=MAX_OPERATION_BYTES)

    async def publish() -> Call:
        if asked.kind not in ("snapshot", "inflight"):
            raise InvalidInput(f"{asked.kind!r} is neither 'snapshot' nor 'inflight'", field="kind")
        if (asked.path is None) == (asked.sampling_session_seq_id is None):
            raise InvalidInput("give path or sampling_session_seq_id, one of them", field="path")
        if asked.path is None and wanted.sampling == "":
            raise InvalidInput(f"{number} is no number of a sampling session", field="sampling_session_seq_id")
        message = training_pb2.PublishRequest(
            name="" if asked.path is None else _name(asked.path),
            ttl_seconds=_ttl(asked.ttl_seconds),
            metadata=_metadata(asked.user_metadata),
        )
        return Call.of(Verb.PUBLISH, message)

    wanted = RequestId.of_model(asked.model_id, asked.seq_id)
    number = asked.sampling_session_seq_id or 0
    if asked.path is None and asked.kind in ("snapshot", "inflight") and 0 <= number < MAX_SAMPLING_SESSIONS:
        wanted = RequestId("train", asked.model_id, asked.seq_id, asked.kind, number)
    return answer(await promise(gateway_of(request), wanted, publish, caller=caller_of(request)))


@describe(
    "Save a Tinker model's weights for download",
    takes=media(SaveExternal),
    gives=media(Promised),
    error=media(ErrorBody),
    errors=[NotFound],
)
async def _save_external(request: Request) -> Response:
    asked = await read_json(request, SaveExternal, limit=MAX_OPERATION_BYTES)

    async def publish() -> Call:
        if asked.age_encryption_recipients:
            raise InvalidInput(
                "this server does not encrypt weights",
                field="age_encryption_recipients",
                hint="leave it out; the files travel only to who has a signed URL",
            )
        message = training_pb2.PublishRequest(
            name=_name(asked.path), ttl_seconds=_ttl(asked.ttl_seconds), external=True
        )
        return Call.of(Verb.PUBLISH, message)

    wanted = RequestId.of_model(asked.model_id, asked.seq_id)
    return answer(await promise(gateway_of(request), wanted, publish, caller=caller_of(request)))


async def saved(gateway: Gateway, wanted: RequestId, operation: operations_pb2.Operation) -> Body:
    """The result of an operation that saved or loaded something; a sampling session that comes of it is entered."""
    if operation.HasField("load_weights"):
        return LoadedWeights(path=CheckpointPath.parse(operation.load_weights.path).tinker_path, model_id=wanted.owner)
    assert operation.HasField("save_weights"), operation.verb
    told = operation.save_weights
    if wanted.sampling:
        return SavedForSampler(sampling_session_id=await _sampling_session(gateway, wanted, told.policy_version))
    path = CheckpointPath.parse(told.path).tinker_path
    match CheckpointPath.parse(path).kind:
        case "weights":
            return SavedWeights(path=path)
        case "external_weights":
            manifest = await gateway.control.checkpoints.get(CheckpointPath.parse(path))
            return SavedExternal(path=path, size_bytes=manifest.size_bytes)
        case "sampler_weights":
            return SavedForSampler(path=path)


async def _sampling_session(gateway: Gateway, wanted: RequestId, policy_version: int) -> str:
    place = await gateway.whereabouts.run(wanted.owner, caller=OPERATOR)
    await gateway.sampling_sessions.enter(
        wanted.session_id,
        wanted.number,
        project=place.project,
        base_model=place.base_model,
        run_id=place.run_id,
        policy_version=policy_version,
        kind=wanted.sampling,
    )
    return sampling_session_id_of(wanted.session_id, wanted.number)


def _name(path: str | None) -> str:
    if path is None:
        raise InvalidInput("missing", field="path")
    return check_name(path, field="path")


def _metadata(given: Mapping[str, Any] | None) -> Mapping[str, str]:
    metadata = metadata_of(given)
    requests.check_metadata(metadata)
    return metadata


def _ttl(ttl_seconds: int | None) -> int | None:
    if ttl_seconds is not None and not MIN_TTL_S <= ttl_seconds <= MAX_TTL_S:
        raise InvalidInput(f"{ttl_seconds} is not between {MIN_TTL_S} and {MAX_TTL_S}", field="ttl_seconds")
    return ttl_seconds


ROUTES = [
    Route(f"{PREFIX}save_weights", _save, methods=["POST"]),
    Route(f"{PREFIX}save_weights_for_sampler", _save_for_sampler, methods=["POST"]),
    Route(f"{PREFIX}save_weights_external", _save_external, methods=["POST"]),
]
