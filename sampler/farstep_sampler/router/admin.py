"""The routes of a router that a replica has not: its replicas listed, joined and sent away."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import NotFound
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.router.members import Members
from farstep_serving.descriptions import describe, query
from farstep_serving.keys import for_operators
from farstep_serving.messages import read_message, respond

_MAX_BYTES = 64 << 10


def replica_routes(members: Members) -> list[Route]:
    @describe("List replicas", gives=pb.ListReplicasResponse)
    async def list_all(request: Request) -> Response:
        return respond(request, pb.ListReplicasResponse(replicas=[link.describe() for link in members]))

    @describe("Have a replica join", takes=pb.AddReplicaRequest, gives=pb.ReplicaState)
    async def add(request: Request) -> Response:
        message = await read_message(request, pb.AddReplicaRequest, limit=_MAX_BYTES)
        return respond(request, members.add(message.url).describe())

    @describe(
        "Have a replica leave",
        gives=pb.ReplicaState,
        parameters=[query("url", "the replica's", required=True)],
        errors=[NotFound],
    )
    async def remove(request: Request) -> Response:
        return respond(request, members.remove(request.query_params.get("url", "")).describe())

    return [
        Route(paths.REPLICAS, for_operators(list_all), methods=["GET"]),
        Route(paths.REPLICAS, for_operators(add), methods=["POST"]),
        Route(paths.REPLICAS, for_operators(remove), methods=["DELETE"]),
    ]
