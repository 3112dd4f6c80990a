"""The line to one server, against the real table of operations."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway.channel import CLIENT_ID, Channel, Submission
from farstep_infra.gateway.server_http import NotNow, Relayed
from farstep_proto import paths
from farstep_proto.errors import Conflict, NotFound, TooManyRequests
from farstep_proto.v1 import operations_pb2 as pb
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing
from farstep_serving.messages import respond
from farstep_serving.operation_routes import operation_routes
from farstep_serving.operations import OperationTable

RUN = "s:train:0"


class Server:
    """A trainer that computes when it is told to."""

    def __init__(self):
        self.table = OperationTable()
        self.refusals = []
        self.is_away = False

    async def submit(self, request: Request) -> Response:
        if self.refusals:
            raise self.refusals.pop(0)
        operation_id = f"{request.path_params['run_id']}:{request.query_params['seq']}"
        client_id = request.headers[paths.CLIENT_ID]
        self.table.open(
            operation_id, client_id=client_id, verb=request.path_params["verb"], digest=await request.body()
        )
        return respond(request, pb.Accepted(operation_id=operation_id), status=202)

    def finish(self, seq):
        outcome = pb.Operation(state=pb.OPERATION_STATE_SUCCEEDED)
        outcome.optim_step.metrics["seq"] = seq
        self.table.finish(f"{RUN}:{seq}", outcome)

    def unfetched(self):
        return [each.operation_id for each in self.table.list_of(RUN, unfetched=True)]

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if self.is_away:
            raise httpx.ConnectError("nobody is there")
        routes = [Route(paths.VERB, self.submit, methods=["POST"])]
        app = make_app([*routes, *operation_routes(self.table, cancel=lambda _: True)], keys=KeyRing.of("fsk-x"))
        return await httpx.ASGITransport(app).handle_async_request(request)


@asynccontextmanager
async def channel_to(server, **kwargs):
    headers = {"Authorization": "Bearer fsk-x", "Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF}
    async with httpx.AsyncClient(transport=_Transport(server), headers=headers) as client:
        channel = Channel("http://trainer", client, **kwargs)
        task = asyncio.create_task(channel.run())
        try:
            yield channel
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, server):
        self._server = server

    async def handle_async_request(self, request):
        return await self._server.handle(request)


def submission(seq, body=b"", **kwargs):
    path = f"{paths.VERB.format(run_id=RUN, verb='optim_step')}?seq={seq}"
    return Submission(f"{RUN}:{seq}", path, [body], "project", **kwargs)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.01)


async def test_an_outcome_is_kept_by_the_server_until_it_was_fetched():
    server = Server()
    heard = []
    async with channel_to(server, on_outcome=lambda operation: heard.append(operation.operation_id)) as channel:
        for seq in (2, 1):
            await channel.submit(submission(seq))
        assert await channel.outcome(f"{RUN}:1", wait_s=0.01) is None
        waiting = asyncio.create_task(channel.outcome(f"{RUN}:1", wait_s=60))
        server.finish(1)
        server.finish(2)
        outcome = await asyncio.wait_for(waiting, 30)
        assert outcome.optim_step.metrics["seq"] == 1
        await until(lambda: len(heard) == 2)
        assert server.unfetched() == [f"{RUN}:2", f"{RUN}:1"]
        channel.fetched(f"{RUN}:1")
        await until(lambda: server.unfetched() == [f"{RUN}:2"])
        again = await channel.outcome(f"{RUN}:1", wait_s=60)  # its answer may have been lost
        assert again == outcome
    assert server.table.clients(f"{RUN}:2") == (CLIENT_ID,)


async def test_who_comes_after_knows_what_was_not_fetched():
    server = Server()
    async with channel_to(server) as channel:
        for seq in (1, 2, 3):
            await channel.submit(submission(seq))
        server.finish(1)
        assert await channel.outcome(f"{RUN}:1", wait_s=60)
    server.finish(2)
    async with channel_to(server) as channel:
        for seq in (1, 2):
            assert (await channel.outcome(f"{RUN}:{seq}", wait_s=60)).optim_step.metrics["seq"] == seq
        waiting = asyncio.create_task(channel.outcome(f"{RUN}:3", wait_s=60))
        await asyncio.sleep(0.02)
        server.finish(3)
        assert (await asyncio.wait_for(waiting, 30)).optim_step.metrics["seq"] == 3
        for seq in (1, 2, 3):
            channel.fetched(f"{RUN}:{seq}")
        await until(lambda: not server.unfetched())


async def test_what_a_server_lost_is_told():
    server = Server()
    async with channel_to(server) as channel:
        with pytest.raises(NotFound):
            await channel.outcome(f"{RUN}:9", wait_s=60)
        await channel.submit(submission(1))
        waiting = asyncio.create_task(channel.outcome(f"{RUN}:1", wait_s=60))
        server.is_away = True
        server.table.drain()  # the parked poll ends
        await until(lambda: channel.trouble)
        server.table, server.is_away = OperationTable(), False
        with pytest.raises(NotFound, match="no longer knows"):
            await asyncio.wait_for(waiting, 30)
        await until(lambda: not channel.trouble)


async def test_a_submission_waits_for_a_server_that_is_away_and_wakes_it():
    server = Server()
    server.is_away = True
    asked = []

    async def wake(wait_s):
        asked.append(wait_s)
        server.is_away = len(asked) < 2

    server.refusals.append(TooManyRequests("so many", retry_after_s=0.01))
    async with channel_to(server) as channel:
        await channel.submit(submission(1, wake=wake), within_s=30)
        assert len(asked) == 3  # twice away, once refused for now
        server.is_away = True
        with pytest.raises(NotNow):
            await channel.submit(submission(2), within_s=0)
        with pytest.raises(NotNow):
            await channel.outcome(f"{RUN}:2", wait_s=60)


async def test_a_refusal_is_told_as_it_came():
    server = Server()
    server.refusals.append(Conflict("seq 1 was passed", field="seq"))
    async with channel_to(server) as channel:
        with pytest.raises(Relayed, match="passed") as caught:
            await channel.submit(submission(1))
        assert (caught.value.status, caught.value.field) == (409, "seq")
        await channel.submit(submission(1, b"one"))
        await channel.submit(submission(1, b"one"))
        with pytest.raises(Relayed, match="different content"):
            await channel.submit(submission(1, b"other"))
        server.finish(1)
        assert await channel.outcome(f"{RUN}:1", wait_s=60)


async def test_nobody_waits_at_the_end():
    server = Server()
    async with channel_to(server) as channel:
        await channel.submit(submission(1))
        waiting = asyncio.create_task(channel.outcome(f"{RUN}:1", wait_s=60))
        await asyncio.sleep(0)
        channel.release()
        assert await asyncio.wait_for(waiting, 30) is None
        assert await channel.outcome(f"{RUN}:1", wait_s=60) is None
