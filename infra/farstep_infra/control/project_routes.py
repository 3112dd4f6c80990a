"""The routes of projects, their keys, and what they have used: handlers that translate, and no more."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control import keys, usage
from farstep_infra.control.control import control_of
from farstep_infra.control.idempotency import once_of
from farstep_infra.control.keys import IssuedKeys
from farstep_infra.control.queries import LISTS, ONCE, PAGES, one_of, page_of, project_of, state_in, text_of
from farstep_proto import paths
from farstep_proto.errors import Conflict, Forbidden, NotFound
from farstep_proto.v1 import common_pb2, control_pb2
from farstep_serving.descriptions import describe, query
from farstep_serving.keys import caller_of
from farstep_serving.messages import read_message, respond

_MAX_BODY_BYTES = 64 << 10


def project_routes() -> list[Route]:
    return [
        Route(paths.PROJECTS, _create_project, methods=["POST"]),
        Route(paths.PROJECTS, _list_projects, methods=["GET"]),
        Route(paths.PROJECT, _get_project, methods=["GET"]),
        Route(paths.PROJECT, _set_quotas, methods=["PUT"]),
        Route(paths.PROJECT, _delete_project, methods=["DELETE"]),
        Route(paths.USAGE, _list_usage, methods=["GET"]),
    ]


@describe(
    "Make a project",
    takes=control_pb2.CreateProjectRequest,
    gives=control_pb2.Project,
    status=201,
    parameters=[ONCE],
    errors=[Forbidden, Conflict],
)
async def _create_project(request: Request) -> Response:
    message = await read_message(request, control_pb2.CreateProjectRequest, limit=_MAX_BODY_BYTES)
    once = once_of(request, message)
    project = await control_of(request).projects.create(message, caller=caller_of(request), once=once)
    return respond(request, project, status=201)


@describe("List projects", gives=control_pb2.ListProjectsResponse, parameters=PAGES)
async def _list_projects(request: Request) -> Response:
    return respond(request, await control_of(request).projects.list(page_of(request), caller=caller_of(request)))


@describe("Look at a project", gives=control_pb2.Project)
async def _get_project(request: Request) -> Response:
    project = request.path_params["project"]
    return respond(request, await control_of(request).projects.get(project, caller=caller_of(request)))


@describe("Set a project's quotas", takes=control_pb2.Project, gives=control_pb2.Project, errors=[Forbidden])
async def _set_quotas(request: Request) -> Response:
    message = await read_message(request, control_pb2.Project, limit=_MAX_BODY_BYTES)
    projects, project = control_of(request).projects, request.path_params["project"]
    return respond(request, await projects.set_quotas(project, message, caller=caller_of(request)))


@describe("Delete a project and revoke its keys", errors=[Forbidden, Conflict])
async def _delete_project(request: Request) -> Response:
    await control_of(request).projects.delete(request.path_params["project"], caller=caller_of(request))
    return respond(request, common_pb2.Empty())


@describe(
    "Sum up what was used",
    gives=control_pb2.ListUsageResponse,
    parameters=[
        *LISTS,
        query("run_id", "of this run alone"),
        query("since", "first day (UTC)", type="string", format="date"),
        query("until", "last day (UTC)", type="string", format="date"),
        query("by", "what is told apart", type="string", enum=list(usage.GROUPINGS), default="project"),
    ],
    errors=[NotFound],
)
async def _list_usage(request: Request) -> Response:
    listed = await control_of(request).usage.list(
        page_of(request),
        caller=caller_of(request),
        project=project_of(request),
        run_id=text_of(request, "run_id"),
        within=usage.period(request.query_params.get("since", ""), request.query_params.get("until", "")),
        by=one_of(request, "by", usage.GROUPINGS, default="project"),
    )
    return respond(request, listed)


def key_routes(issued: IssuedKeys) -> list[Route]:
    @describe(
        "Make a key",
        takes=control_pb2.CreateKeyRequest,
        gives=control_pb2.CreatedKey,
        status=201,
        parameters=[ONCE],
        errors=[Forbidden, NotFound, Conflict],
    )
    async def create(request: Request) -> Response:
        message = await read_message(request, control_pb2.CreateKeyRequest, limit=_MAX_BODY_BYTES)
        once = once_of(request, message)
        return respond(request, await issued.create(message, caller=caller_of(request), once=once), status=201)

    @describe(
        "List keys",
        gives=control_pb2.ListKeysResponse,
        parameters=[*LISTS, state_in(keys.STATES)],
        errors=[NotFound],
    )
    async def listed(request: Request) -> Response:
        found = await issued.list(
            page_of(request),
            caller=caller_of(request),
            project=project_of(request),
            state=one_of(request, "state", keys.STATES),
        )
        return respond(request, found)

    @describe("Look at a key", gives=control_pb2.Key)
    async def get(request: Request) -> Response:
        return respond(request, await issued.get(request.path_params["key_id"], caller=caller_of(request)))

    @describe("Revoke a key", errors=[Forbidden])
    async def revoke(request: Request) -> Response:
        await issued.revoke(request.path_params["key_id"], caller=caller_of(request))
        return respond(request, common_pb2.Empty())

    @describe(
        "Tell whose a key is",
        takes=control_pb2.CheckKeyRequest,
        gives=control_pb2.KeyOwner,
        errors=[Forbidden, NotFound],
    )
    async def check(request: Request) -> Response:
        message = await read_message(request, control_pb2.CheckKeyRequest, limit=_MAX_BODY_BYTES)
        return respond(request, await issued.check(message, caller=caller_of(request)))

    return [
        Route(paths.CHECK_KEY, check, methods=["POST"]),
        Route(paths.KEYS, create, methods=["POST"]),
        Route(paths.KEYS, listed, methods=["GET"]),
        Route(paths.KEY, get, methods=["GET"]),
        Route(paths.KEY, revoke, methods=["DELETE"]),
    ]
