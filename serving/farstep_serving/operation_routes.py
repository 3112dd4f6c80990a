"""The routes of operations, the same on every server: poll, look at, cancel. Handlers translate ids, and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.v1 import operations_pb2 as pb
from farstep_serving.bodies import MAX_BODY_BYTES
from farstep_serving.descriptions import WAIT_S, describe
from farstep_serving.keys import Caller, caller_of
from farstep_serving.messages import read_message, respond, wait_s_of
from farstep_serving.operations import MAX_POLL_S, OperationTable

Cancel = Callable[[str], bool | Awaitable[bool]]
KnownAs = Callable[[Caller, str], str]


def operation_routes(table: OperationTable, *, cancel: Cancel, known_as: KnownAs = Caller.named) -> list[Route]:
    """Poll, look at and cancel operations.

    Args:
        cancel: drops a queued one and says, now or soon, whether it did.
        known_as: under which id the table has the operation that a caller means, whose own id follows the last `/`
            of it; one that the table cannot have, for an operation that the caller may not know of.
    """
    api = _OperationApi(table, cancel, known_as)
    return [
        Route(paths.POLL, api.poll, methods=["POST"]),
        Route(paths.CANCEL, api.cancel_one, methods=["POST"]),
        Route(paths.OPERATION, api.get, methods=["GET"]),
    ]


@dataclass(frozen=True, slots=True)
class _OperationApi:
    table: OperationTable
    cancel: Cancel
    known_as: KnownAs

    @describe("Hear of finished operations", takes=pb.PollRequest, gives=pb.PollResponse)
    async def poll(self, request: Request) -> Response:
        message = await read_message(request, pb.PollRequest, limit=MAX_BODY_BYTES)
        if not message.client_id:
            raise InvalidInput("missing", field="client_id")
        if not message.wait_s >= 0:  # a timer of NaN seconds would put all timers out of order
            raise InvalidInput(f"{message.wait_s} is not a number of seconds", field="wait_s")
        answer = await self.table.poll(self._as_known(message, caller_of(request)))
        for operation in answer.finished:
            operation.operation_id = _own_id(operation.operation_id)
        answer.unknown[:] = map(_own_id, answer.unknown)
        return respond(request, answer)

    @describe("Look at an operation", gives=pb.Operation, parameters=[WAIT_S])
    async def get(self, request: Request) -> Response:
        _, operation = await self._look(request, wait_s=wait_s_of(request, most=MAX_POLL_S))
        return respond(request, operation)

    @describe("Cancel an operation that is queued", gives=pb.CancelResponse)
    async def cancel_one(self, request: Request) -> Response:
        operation_id, _ = await self._look(request, wait_s=0)
        dropped = self.table.is_queued(operation_id) and self.cancel(operation_id)
        cancelled = dropped if isinstance(dropped, bool) else await dropped
        if cancelled and self.table.is_pending(operation_id):  # its run may have been deleted meanwhile
            self.table.cancel(operation_id)
        return respond(request, pb.CancelResponse(cancelled=cancelled))

    def _as_known(self, asked: pb.PollRequest, caller: Caller) -> pb.PollRequest:
        """In the table's own names."""
        return pb.PollRequest(
            client_id=caller.named(asked.client_id),
            ack=[self.known_as(caller, operation_id) for operation_id in asked.ack],
            check=[self.known_as(caller, operation_id) for operation_id in asked.check],
            held=[self.known_as(caller, operation_id) for operation_id in asked.held],
            wait_s=asked.wait_s,
        )

    async def _look(self, request: Request, *, wait_s: float) -> tuple[str, pb.Operation]:
        given = request.path_params["operation_id"]
        operation_id = self.known_as(caller_of(request), given)
        try:
            operation = await self.table.wait(operation_id, wait_s)
        except NotFound:
            raise NotFound(f"no operation {given!r}", field="operation_id") from None
        operation.operation_id = given
        return operation_id, operation


def _own_id(operation_id: str) -> str:
    """As its client calls it."""
    return operation_id.rpartition("/")[2]
