"""Runs, as the Tinker SDK's RestClient and command ask for them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.gateway.bodies import Body, answer, media
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.records import Cursor, TrainingRun
from farstep_infra.gateway.run_records import RunRecords
from farstep_infra.gateway.windows import LIMIT, OFFSET, PROJECT, SCOPE, is_accessible, project_of, window_of
from farstep_proto.errors import NotFound
from farstep_serving.descriptions import describe
from farstep_serving.keys import caller_of

_DEFAULT_LIMIT = 20


class TrainingRuns(Body):
    training_runs: list[TrainingRun]
    cursor: Cursor


@describe(
    "List training runs",
    gives=media(TrainingRuns),
    error=media(ErrorBody),
    parameters=[LIMIT, OFFSET, SCOPE, PROJECT],
    errors=[NotFound],
)
async def _list(request: Request) -> Response:
    is_accessible(request)  # within a project everybody sees everything; what others made public is in no list
    window = window_of(request, default=_DEFAULT_LIMIT)
    records = RunRecords(control_of(request), caller_of(request))
    runs, total = await records.window(limit=window.limit, offset=window.offset, project=project_of(request))
    return answer(TrainingRuns(training_runs=runs, cursor=window.cursor(total)))


@describe("Look at a training run", gives=media(TrainingRun), error=media(ErrorBody), parameters=[SCOPE])
async def _get(request: Request) -> Response:
    records = RunRecords(control_of(request), caller_of(request))
    return answer(await records.get(request.path_params["run_id"], accessible=is_accessible(request)))


ROUTES = [
    Route(f"{PREFIX}training_runs", _list, methods=["GET"]),
    Route(f"{PREFIX}training_runs/{{run_id}}", _get, methods=["GET"]),
]
