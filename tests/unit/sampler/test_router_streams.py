"""Streams through the router from replicas that die, drain and disagree: what arrives is said once, in order, or ends
with an error event."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import ApiError, Draining, InvalidInput
from farstep_proto.tensors import model_input_to_proto
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.router.backend import NobodyLeft, Router
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.router.streams import relay
from farstep_sampler.versions import AtLeast
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing
from farstep_serving.messages import respond
from farstep_serving.process import bind, url_of

PATH = "/v1/stream"


@dataclass
class Streamer:
    """A replica that says one event a seed and place; it breaks off after `dies_after`, if that is set."""

    version: int = 3
    dies_after: int | None = None
    salt: str = ""
    error: ApiError | None = None
    pause_s: float = 0.0
    seen: list[tuple[pb.SampleRequest, str | None]] = field(default_factory=list)
    num_open: int = 0

    async def info(self, request: Request) -> Response:
        return respond(request, training_pb2.ServerInfo(role="sampler", vocab_size=100, max_seq_len=50))

    async def policies(self, request: Request) -> Response:
        after = int(request.query_params.get("after", "0"))
        if after:
            await asyncio.sleep(float(request.query_params["wait_s"]))
        state = pb.PolicyState(run_id="r", newest_version=self.version, resident_versions=[self.version])
        return respond(request, pb.ListPoliciesResponse(policies=[state], revision=1))

    async def stream(self, request: Request) -> Response:
        message = pb.SampleRequest.FromString(await request.body())
        self.seen.append((message, request.headers.get(paths.EXACT_POLICY_VERSION)))
        if self.error is not None:
            raise self.error
        headers = {paths.EXACT_POLICY_VERSION: str(self.version)}
        return StreamingResponse(self.events(message.params.seed), media_type="text/event-stream", headers=headers)

    async def events(self, seed: int) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            for index in range(6):
                if index == self.dies_after:
                    yield b"data: half of an ev"
                    raise ConnectionError("the replica dies")
                yield f"data: {self.salt}{seed}-{index}\n\n".encode()
                await asyncio.sleep(self.pause_s)
        finally:
            self.num_open -= 1


@asynccontextmanager
async def started(streamer: Streamer) -> AsyncIterator[str]:
    """Over a real socket, since a stream that breaks off is a matter of sockets."""
    routes = [
        Route(paths.INFO, streamer.info, methods=["GET"]),
        Route(paths.POLICIES, streamer.policies, methods=["GET"]),
        Route(PATH, streamer.stream, methods=["POST"]),
    ]
    sock = bind("127.0.0.1", 0)
    config = uvicorn.Config(make_app(routes, keys=KeyRing.of()), log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve(sockets=[sock]))
    try:
        yield url_of(sock)
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def routed(*streamers: Streamer) -> AsyncIterator[Router]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(started(streamer)) for streamer in streamers]
        router = Router(urls, make_link=lambda url: ReplicaLink(url, key=None))
        await stack.enter_async_context(router.running())
        async with asyncio.timeout(10):
            while not all(link.is_healthy for link in router.members):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield router


def request(**fields: object) -> pb.SampleRequest:
    return pb.SampleRequest(prompt=model_input_to_proto([1, 2]), num_samples=1, run_id="r", **fields)


async def events(router: Router, message: pb.SampleRequest | None = None) -> list[str]:
    message = message or request()
    wanted = router.want(message, AtLeast(0))
    return [event.decode() async for event in relay(router, message, wanted, path=PATH)]


def whole(seed: int) -> list[str]:
    return [f"data: {seed}-{index}\n\n" for index in range(6)]


async def test_a_stream_passes_as_it_comes() -> None:
    streamer = Streamer(pause_s=0.05)
    async with routed(streamer) as router:
        message = request(params=pb.SamplingParams(seed=5))
        stream = relay(router, message, router.want(message, AtLeast(0)), path=PATH)
        assert await anext(stream) == b"data: 5-0\n\n"
        assert streamer.num_open == 1  # the rest has yet to be said
        assert next(iter(router.members)).num_in_flight == 1
        assert [event async for event in stream][-1] == b"data: 5-5\n\n"
        assert next(iter(router.members)).num_in_flight == 0


@pytest.mark.parametrize("dies_after", [0, 1, 4])
async def test_another_replica_takes_over_where_the_first_one_died(dies_after: int) -> None:
    first, second = Streamer(dies_after=dies_after), Streamer()
    async with routed(first, second) as router:
        said = await events(router)
    (message, pinned), (again, held_to) = first.seen[0], second.seen[0]
    assert said == whole(message.params.seed)
    assert again.params.seed == message.params.seed
    assert (pinned, held_to) == (None, "3")  # held to the version that the first one sampled


async def test_one_that_says_something_else_ends_the_stream_with_an_error() -> None:
    first, second = Streamer(dies_after=2), Streamer(salt="other")
    async with routed(first, second) as router:
        said = await events(router)
    assert said[:2] == whole(first.seen[0][0].params.seed)[:2]
    assert said[2].startswith("event: error\ndata: {")
    assert "samples something else" in said[2]
    assert len(said) == 3


async def test_without_another_replica_the_stream_ends_with_an_error() -> None:
    async with routed(Streamer(dies_after=2)) as router:
        said = await events(router)
    assert len(said) == 3
    assert "lost in the middle of the stream" in said[2]


async def test_before_the_first_event_errors_are_raised() -> None:
    async with routed(Streamer(dies_after=0)) as router:
        with pytest.raises(ApiError, match="lost"):
            await events(router)
    async with routed(Streamer(error=InvalidInput("bad", field="prompt"))) as router:
        with pytest.raises(ApiError, match="bad") as caught:
            await events(router)
        assert caught.value.field == "prompt"
    async with routed() as router:
        with pytest.raises(NobodyLeft):
            await events(router)


async def test_a_replica_that_takes_nothing_new_is_passed_over() -> None:
    first, second = Streamer(error=Draining("draining")), Streamer()
    async with routed(first, second) as router:
        message = request(params=pb.SamplingParams(seed=9))
        assert await events(router, message) == whole(9)
    assert len(first.seen) == 1


async def test_a_client_that_goes_away_ends_the_stream_at_the_replica() -> None:
    streamer = Streamer(pause_s=0.2)
    async with routed(streamer) as router:
        message = request()
        stream = relay(router, message, router.want(message, AtLeast(0)), path=PATH)
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(5):
            while streamer.num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert next(iter(router.members)).num_in_flight == 0
