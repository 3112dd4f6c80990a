"""A session's timeline, to look at: its trainers are asked when somebody fetches the URL, and nothing is kept.

A trainer knows the last thousand operations of each run, until it ends; sampling leaves no trace.
"""

from __future__ import annotations

import asyncio
from typing import Literal
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway.auth import auth_of
from farstep_infra.gateway.bodies import Body, answer, media
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.server_http import NotNow, Relayed
from farstep_infra.gateway.session_records import SessionRecords
from farstep_infra.gateway.timeline import timeline
from farstep_proto import paths
from farstep_proto.errors import Forbidden
from farstep_proto.v1 import training_pb2
from farstep_serving.descriptions import Media, describe, query
from farstep_serving.keys import OPERATOR, caller_of

FILE = f"{PREFIX}sessions/{{session_id}}/trace"
_LAST = 1000


class TraceExport(Body):
    status: Literal["ready"] = "ready"
    url: str


@describe("Get the URL of a session's timeline", gives=media(TraceExport), error=media(ErrorBody))
async def _export(request: Request) -> Response:
    session_id = request.path_params["session_id"]
    await gateway_of(request).control.sessions.get(session_id, caller=caller_of(request))
    proof = urlencode({"token": auth_of(request).tokens.for_trace(session_id)})
    place = FILE.format(session_id=quote(session_id, safe=""))
    return answer(TraceExport(url=f"{str(request.base_url).rstrip('/')}{place}?{proof}"))


@describe(
    "Fetch a session's timeline by its URL",
    gives=Media({paths.JSON: {"type": "object"}}),
    error=media(ErrorBody),
    parameters=[query("token", "as in the URL")],
    errors=[Forbidden],
)
async def _file(request: Request) -> Response:
    session_id = request.path_params["session_id"]
    auth_of(request).tokens.check_trace(request.query_params.get("token", ""), session_id)
    gateway = gateway_of(request)
    await gateway.control.sessions.get(session_id, caller=OPERATOR)
    run_ids = await SessionRecords(gateway.control, gateway.db, OPERATOR).runs_of(session_id)
    found = await asyncio.gather(*(_trace_of(gateway, run_id) for run_id in run_ids))
    traces = {run_id: trace for run_id, trace in zip(run_ids, found, strict=True) if trace is not None}
    content = timeline(session_id, traces, left_out=len(run_ids) - len(traces))
    name = {"Content-Disposition": f'attachment; filename="{quote(session_id, safe="")}.pftrace"'}
    return Response(content, media_type=paths.JSON, headers=name)


async def _trace_of(gateway: Gateway, run_id: str) -> list[training_pb2.OperationTrace] | None:
    """None where its trainer rests or is gone, and what it knew with it."""
    run = await gateway.control.runs.get(run_id, caller=OPERATOR)
    if not run.trainer_url:
        return None
    path = paths.of(paths.TRACE, run_id=run_id)
    try:
        answered = await gateway.channels.ask("GET", f"{run.trainer_url}{path}?last={_LAST}")
    except (NotNow, Relayed):
        return None
    return list(training_pb2.TraceResponse.FromString(answered).operations)


ROUTES = [
    Route(f"{PREFIX}sessions/{{session_id}}/trace_export", _export, methods=["GET"]),
    Route(FILE, _file, methods=["GET"]),
]
