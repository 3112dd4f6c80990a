"""Checkpoints, as the Tinker SDK's RestClient and command ask for them."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.records import Checkpoint, Cursor, WeightsInfo, checkpoint_record, weights_info, when
from farstep_infra.gateway.run_records import RunRecords, path_from, path_of
from farstep_infra.gateway.windows import LIMIT, OFFSET, window_of
from farstep_infra.store.archive import Checkpoints
from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath
from farstep_serving.descriptions import describe
from farstep_serving.keys import caller_of

MIN_TTL_S = 3600
MAX_TTL_S = 10 * 365 * 24 * 3600
_DEFAULT_LIMIT = 100
_ONE = f"{PREFIX}training_runs/{{run_id}}/checkpoints/{{kind}}/{{name}}"


class CheckpointList(Body):
    """`cursor` is of the list of all runs' checkpoints alone."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class Ttl(Body):
    """`null`: it never expires."""

    ttl_seconds: int | None = Field(ge=MIN_TTL_S, le=MAX_TTL_S)


class ExternalWeightsUrls(Body):
    """By name of the file; each URL is signed and needs no key until it expires."""

    urls: dict[str, str]
    expires: datetime


class TinkerPath(Body):
    tinker_path: str


@describe("List a training run's checkpoints, oldest first", gives=media(CheckpointList), error=media(ErrorBody))
async def _of_run(request: Request) -> Response:
    manifests = await _records(request).checkpoints(request.path_params["run_id"])
    return answer(CheckpointList(checkpoints=[checkpoint_record(each) for each in manifests]))


@describe(
    "List all checkpoints, newest first",
    gives=media(CheckpointList),
    error=media(ErrorBody),
    parameters=[LIMIT, OFFSET],
)
async def _all(request: Request) -> Response:
    window = window_of(request, default=_DEFAULT_LIMIT)
    manifests = await _records(request).all_checkpoints()
    here = manifests[window.offset : window.offset + window.limit]
    found = [checkpoint_record(each) for each in here]
    return answer(CheckpointList(checkpoints=found, cursor=window.cursor(len(manifests))))


@describe("Delete a checkpoint of a training run", gives=media(Body), error=media(ErrorBody))
async def _delete(request: Request) -> Response:
    path, checkpoints = await _for_change(request)
    await checkpoints.delete(path)
    return answer(Body())


@describe("Refuse to delete a checkpoint that is not named in full", gives=media(Body), error=media(ErrorBody))
async def _delete_any(request: Request) -> Response:
    await _records(request).checkpoints(request.path_params["run_id"])  # there is such a run for the caller
    name = request.path_params["name"]
    raise InvalidInput(
        f"{name[:200]!r} may be of several kinds", field="checkpoint_id", hint="it looks like weights/<name>"
    )


@describe("Let every project of the installation read a checkpoint", gives=media(Body), error=media(ErrorBody))
async def _publish(request: Request) -> Response:
    path, checkpoints = await _for_change(request)
    await checkpoints.set_public(path, public=True)
    return answer(Body())


@describe("Let its own project alone read a checkpoint", gives=media(Body), error=media(ErrorBody))
async def _unpublish(request: Request) -> Response:
    path, checkpoints = await _for_change(request)
    await checkpoints.set_public(path, public=False)
    return answer(Body())


@describe("Set when a training run's checkpoint expires", takes=media(Ttl), gives=media(Body), error=media(ErrorBody))
async def _set_ttl(request: Request) -> Response:
    ttl = await read_json(request, Ttl)
    path, checkpoints = await _for_change(request)
    await checkpoints.set_ttl(path, ttl.ttl_seconds)
    return answer(Body())


@describe("Get the URLs of external weights' files", gives=media(ExternalWeightsUrls), error=media(ErrorBody))
async def _urls(request: Request) -> Response:
    path = path_of(request.path_params["run_id"], "external_weights", request.path_params["name"])
    checkpoints, base_url = await _records(request).for_change(path), str(request.base_url)
    archive = await checkpoints.archive(path, base_url=base_url, page="")
    urls, expires_at = {file.name: file.url for file in archive.files}, archive.expires_at
    while archive.next_page:
        archive = await checkpoints.archive(path, base_url=base_url, page=archive.next_page)
        urls |= {file.name: file.url for file in archive.files}
    return answer(ExternalWeightsUrls(urls=urls, expires=when(expires_at)))


@describe(
    "Tell what weights are of",
    takes=media(TinkerPath),
    gives=media(WeightsInfo),
    error=media(ErrorBody),
)
async def _info(request: Request) -> Response:
    path = path_from((await read_json(request, TinkerPath)).tinker_path, field="tinker_path")
    records = _records(request)
    manifest = await (await records.for_change(path)).manifest(path)
    return answer(weights_info(manifest, base_model=await records.name_of(manifest)))


def _records(request: Request) -> RunRecords:
    return RunRecords(control_of(request), caller_of(request))


async def _for_change(request: Request) -> tuple[CheckpointPath, Checkpoints]:
    path = path_of(request.path_params["run_id"], request.path_params["kind"], request.path_params["name"])
    return path, await _records(request).for_change(path)


ROUTES = [
    Route(f"{PREFIX}training_runs/{{run_id}}/checkpoints", _of_run, methods=["GET"]),
    Route(f"{PREFIX}checkpoints", _all, methods=["GET"]),
    Route(
        f"{PREFIX}training_runs/{{run_id}}/checkpoints/external_weights/{{name}}/external_weights_urls",
        _urls,
        methods=["GET"],
    ),
    Route(_ONE, _delete, methods=["DELETE"]),
    Route(f"{PREFIX}training_runs/{{run_id}}/checkpoints/{{name}}", _delete_any, methods=["DELETE"]),
    Route(f"{_ONE}/publish", _publish, methods=["POST"]),
    Route(f"{_ONE}/publish", _unpublish, methods=["DELETE"]),
    Route(f"{_ONE}/ttl", _set_ttl, methods=["PUT"]),
    Route(f"{PREFIX}weights_info", _info, methods=["POST"]),
]
