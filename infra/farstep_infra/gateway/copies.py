"""Copies of weights within the installation: another run's id, another project, the same bytes.

A copy is known by its checkpoints alone until somebody creates a model from it. Its run id is made of who asks and of
what the SDK keeps alike when it repeats itself, so that a repetition finds the copy that is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.projects import enter
from farstep_infra.gateway.bodies import Body, answer, media, read_json
from farstep_infra.gateway.checkpoints_api import MAX_TTL_S, MIN_TTL_S, TinkerPath
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.gateway import Gateway, gateway_of
from farstep_infra.gateway.run_records import RunRecords, path_from
from farstep_infra.store.run_owners import RunOwners
from farstep_proto.errors import Conflict, InvalidInput
from farstep_proto.names import CheckpointPath, check_run_id
from farstep_serving.descriptions import describe, header
from farstep_serving.keys import Caller, caller_of

_IDEMPOTENCY_KEY = "X-Idempotency-Key"
_ACCESS_TOKEN = "X-Tinker-Weights-Access-Token"  # noqa: S105 - the name of a header
_MAX_SEQ = 1 << 31


class CopyRequest(Body):
    """To a session's run, or to a project."""

    source_path: str
    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0, lt=_MAX_SEQ)
    destination_project_id: str | None = None
    ttl_seconds: int | None = Field(default=None, ge=MIN_TTL_S, le=MAX_TTL_S)
    weights_access_token: str | None = None


@describe(
    "Copy weights within the installation",
    takes=media(CopyRequest),
    gives=media(TinkerPath),
    error=media(ErrorBody),
    parameters=[header(_IDEMPOTENCY_KEY, "the same for repetitions of one copy", type="string", maxLength=200)],
)
async def _copy(request: Request) -> Response:
    wanted = await read_json(request, CopyRequest)
    if wanted.weights_access_token or request.headers.get(_ACCESS_TOKEN):
        raise InvalidInput(
            "this installation gives no access tokens, and takes none of others",
            field="weights_access_token",
            hint="download the weights there and import them here (farstep checkpoints import)",
        )
    gateway, caller = gateway_of(request), caller_of(request)
    source = path_from(wanted.source_path, field="source_path")
    checkpoints = await RunRecords(gateway.control, caller).for_change(source)
    await checkpoints.manifest(source)  # it is there, and the caller may read it
    project, run_id = await _destination(gateway, caller, wanted, request.headers.get(_IDEMPOTENCY_KEY, ""))
    to = CheckpointPath(run_id, source.kind, source.name)
    try:
        await asyncio.to_thread(RunOwners(checkpoints.store).claim, run_id, project, caller)
        await asyncio.to_thread(checkpoints.store.copy, source, to, project=project, ttl_seconds=wanted.ttl_seconds)
    except Conflict as error:  # repeated, it would be no other
        raise InvalidInput(error.message, field="model_seq_id", hint="copy to another one") from error
    return answer(TinkerPath(tinker_path=to.tinker_path))


async def _destination(gateway: Gateway, caller: Caller, wanted: CopyRequest, once: str) -> tuple[str, str]:
    """The project and the run id of the copy.

    Raises:
        NotFound: no such session or project for the caller.
        InvalidInput: naming the field.
    """
    if wanted.destination_project_id is not None:
        if wanted.session_id is not None:
            raise InvalidInput("say either a session or a project", field="destination_project_id")
        async with gateway.db.transaction() as db:
            project = (await enter(db, wanted.destination_project_id, caller)).project
        question = f"{caller.key_id}/{project}/{wanted.source_path}/{once}" if once else secrets.token_hex(16)
        return project, f"copy-{hashlib.sha256(question.encode()).hexdigest()[:16]}"
    if wanted.session_id is None or wanted.model_seq_id is None:
        raise InvalidInput("missing: a session with a model_seq_id, or a destination_project_id", field="session_id")
    session = await gateway.control.sessions.get(wanted.session_id, caller=caller)
    return session.project, check_run_id(f"{session.session_id}:train:{wanted.model_seq_id}", field="session_id")


ROUTES = [Route(f"{PREFIX}copy_weights", _copy, methods=["POST"])]
