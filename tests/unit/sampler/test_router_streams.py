"""Streams through the router from replicas that die, drain and disagree: what arrives is said once, in order, or ends
with an error."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import ApiError, Draining, InvalidInput, ModelError
from farstep_proto.framing import HEARTBEAT, framed
from farstep_proto.tensors import ids_from_bytes, ids_to_bytes, model_input_to_proto
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.router.backend import Router
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.router.replica_http import NobodyLeft
from farstep_sampler.versions import AtLeast
from farstep_serving.app import make_app
from farstep_serving.keys import OPERATOR, KeyRing
from farstep_serving.messages import respond
from farstep_serving.process import bind, url_of

NUM_TOKENS = 6


@dataclass
class Streamer:
    """A replica that says the tokens offset, offset + 1, …, `step` at a time; it breaks off after `dies_after`."""

    version: int = 3
    step: int = 1
    dies_after: int | None = None
    offset: int = 10
    error: ApiError | None = None
    late_error: ApiError | None = None
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
        return StreamingResponse(self.pieces(), media_type=paths.PROTOBUF_STREAM)

    async def pieces(self) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            yield framed(pb.SampleEvent(begin=pb.SampleBegin(policy_version=self.version)))
            for start in range(0, NUM_TOKENS, self.step):
                if self.dies_after is not None and start >= self.dies_after:
                    yield framed(self.delta(start))[:-3]
                    raise ConnectionError("the replica dies")
                yield HEARTBEAT + framed(self.delta(start))
                await asyncio.sleep(self.pause_s)
                if self.late_error is not None:
                    yield framed(pb.SampleEvent(error=self.late_error.to_proto()))
                    return
            yield framed(pb.SampleEvent(end=pb.SampleEnd(stop_reasons=["length"], prompt_cache_hit_tokens=1)))
        finally:
            self.num_open -= 1

    def delta(self, start: int) -> pb.SampleEvent:
        tokens = [self.offset + index for index in range(start, min(start + self.step, NUM_TOKENS))]
        is_last = start + self.step >= NUM_TOKENS
        delta = pb.SampleDelta(
            tokens=ids_to_bytes(tokens),
            logprobs=np.full(len(tokens), -1.0, "<f4").tobytes(),
            stop_reason="length" if is_last else "",
        )
        return pb.SampleEvent(delta=delta)


@asynccontextmanager
async def started(streamer: Streamer) -> AsyncIterator[str]:
    """Over a real socket, since a stream that breaks off is a matter of sockets."""
    routes = [
        Route(paths.INFO, streamer.info, methods=["GET"]),
        Route(paths.POLICIES, streamer.policies, methods=["GET"]),
        Route(paths.SAMPLE_STREAM, streamer.stream, methods=["POST"]),
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


@dataclass
class Said:
    kinds: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    error: ApiError | None = None


async def said(router: Router, message: pb.SampleRequest | None = None) -> Said:
    heard = Said()
    try:
        async for event in router.open_stream(message or request(), AtLeast(0), OPERATOR):
            heard.kinds.append(event.WhichOneof("event"))
            heard.tokens += ids_from_bytes(event.delta.tokens).tolist()
    except ApiError as error:
        heard.error = error
    return heard


WHOLE = [10 + index for index in range(NUM_TOKENS)]


async def test_a_stream_passes_as_it_comes() -> None:
    streamer = Streamer(pause_s=0.05)
    async with routed(streamer) as router:
        stream = router.open_stream(request(), AtLeast(0), OPERATOR)
        assert (await anext(stream)).begin.policy_version == 3
        assert ids_from_bytes((await anext(stream)).delta.tokens).tolist() == [10]
        assert streamer.num_open == 1  # the rest has yet to be said
        assert next(iter(router.members)).num_in_flight == 1
        rest = [event async for event in stream]
        assert rest[-1].end.stop_reasons == ["length"]
        assert next(iter(router.members)).num_in_flight == 0


@pytest.mark.parametrize("dies_after", [0, 1, 4])
@pytest.mark.parametrize("step", [1, 4])
async def test_another_replica_takes_over_where_the_first_one_died(dies_after: int, step: int) -> None:
    first, second = Streamer(dies_after=dies_after), Streamer(step=step)
    async with routed(first, second) as router:
        heard = await said(router)
    (message, pinned), (again, held_to) = first.seen[0], second.seen[0]
    assert heard.tokens == WHOLE
    assert heard.error is None
    assert (heard.kinds.count("begin"), heard.kinds[-1]) == (1, "end")
    assert message.params.HasField("seed")
    assert again.params.seed == message.params.seed
    assert (pinned, held_to) == (None, "3")  # held to the version that the first one sampled


@pytest.mark.parametrize("second", [Streamer(offset=30), Streamer(version=4)])
async def test_one_that_says_something_else_ends_the_stream_with_an_error(second: Streamer) -> None:
    async with routed(Streamer(dies_after=2), second) as router:
        heard = await said(router)
    assert heard.tokens == WHOLE[:2]
    assert "samples something else" in str(heard.error)


async def test_without_another_replica_the_stream_ends_with_an_error() -> None:
    async with routed(Streamer(dies_after=2)) as router:
        heard = await said(router)
    assert heard.tokens == WHOLE[:2]
    assert "lost in the middle of the stream" in str(heard.error)


async def test_a_job_that_fails_is_not_tried_elsewhere() -> None:
    first, second = Streamer(late_error=ModelError("bad luck", error_class="OSError")), Streamer()
    async with routed(first, second) as router:
        heard = await said(router)
    assert (heard.tokens, str(heard.error)) == (WHOLE[:1], "bad luck")
    assert heard.error is not None
    assert heard.error.error_class == "OSError"
    assert not second.seen


async def test_before_the_first_event_errors_are_raised() -> None:
    async with routed(Streamer(error=InvalidInput("bad", field="prompt"))) as router:
        heard = await said(router)
        assert heard.error is not None
        assert (heard.error.field, heard.kinds) == ("prompt", [])
    async with routed() as router:
        with pytest.raises(NobodyLeft):
            router.open_stream(request(), AtLeast(0), OPERATOR)


async def test_a_replica_that_takes_nothing_new_is_passed_over() -> None:
    first, second = Streamer(error=Draining("draining")), Streamer()
    async with routed(first, second) as router:
        assert (await said(router, request(params=pb.SamplingParams(seed=9)))).tokens == WHOLE
    assert len(first.seen) == 1


async def test_a_client_that_goes_away_ends_the_stream_at_the_replica() -> None:
    streamer = Streamer(pause_s=0.2)
    async with routed(streamer) as router:
        stream = router.open_stream(request(), AtLeast(0), OPERATOR)
        await anext(stream)
        await stream.aclose()
        async with asyncio.timeout(5):
            while streamer.num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert next(iter(router.members)).num_in_flight == 0
