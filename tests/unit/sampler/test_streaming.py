"""Streams of a replica over real sockets: both forms, the errors before and in them, and clients that go away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
import pytest_asyncio
import uvicorn

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_proto import paths
from farstep_proto.framing import Unframer
from farstep_proto.tensors import ids_from_bytes, ids_to_bytes, model_input_ids, model_input_to_proto
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler import streaming
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.replica import Replica
from farstep_sampler.request import ModelLimits
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions
from farstep_sampler.versions import PolicyId
from farstep_serving.keys import KeyRing
from farstep_serving.process import bind, url_of

MakeAdapter = Callable[..., Adapter]


@asynccontextmanager
async def serving(app: object) -> AsyncIterator[str]:
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server._serve(sockets=[sock]))
    try:
        yield url_of(sock)
    finally:
        server.should_exit = True
        await task


@pytest_asyncio.fixture
async def replica(base: BaseModel, engine: TorchEngine, tmp_path: object) -> AsyncIterator[Replica]:
    limits = ModelLimits(base.max_seq_len, base.vocab_size, base.eos_token_ids)
    made = Replica(base, EngineThread(engine), limits=limits, store=CheckpointStore(tmp_path / "store"), policies=None)
    async with made.running():
        yield made


@pytest_asyncio.fixture
async def submissions() -> AsyncIterator[Submissions]:
    async with Submissions(max_pending=4) as made:
        yield made


@pytest_asyncio.fixture
async def http(replica: Replica, submissions: Submissions) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF}
    app = make_sampler_app(replica, submissions, keys=KeyRing.of())
    async with serving(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        yield client


def request(max_tokens: int = 8, **fields: object) -> pb.SampleRequest:
    params = pb.SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True)
    message = pb.SampleRequest(prompt=model_input_to_proto([5, 6, 7, 8]), num_samples=1, params=params)
    message.MergeFrom(pb.SampleRequest(**fields))
    return message


async def said(http: httpx.AsyncClient, message: pb.SampleRequest, **headers: str) -> list[pb.SampleEvent]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await http.post(paths.SAMPLE_STREAM, content=message.SerializeToString(), headers=named)
    assert response.status_code == 200, response.text
    return [pb.SampleEvent.FromString(data) for data in Unframer().push(response.content)]


async def test_a_stream_says_what_a_sample_says(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    replica._swapper.offer(PolicyId("r", 2), make_adapter(1).to_bytes())
    message = request(run_id="r", topk_logprobs=2, include_prompt_logprobs=True, topk_prompt_logprobs=3)
    message.num_samples, message.prompt_alt_tokens_k = 3, 2
    message.target_prompt_logprobs.k = 1
    message.target_prompt_logprobs.token_ids = ids_to_bytes([9] * (len(model_input_ids(message.prompt)) - 1))
    events = await said(http, message, X_Min_Policy_Version="2")
    response = await http.post(paths.SAMPLE, content=message.SerializeToString())
    whole = pb.SampleResponse.FromString(response.content)
    assert events[0].begin.policy_version == whole.policy_version == 2
    for index, sequence in enumerate(whole.sequences):
        deltas = [event.delta for event in events[1:-1] if event.delta.index == index]
        assert b"".join(delta.tokens for delta in deltas) == sequence.tokens
        logprobs = [np.frombuffer(data, "<f4") for data in (sequence.logprobs, b"".join(d.logprobs for d in deltas))]
        np.testing.assert_allclose(*logprobs, atol=1e-5)
        assert b"".join(delta.topk_logprobs.token_ids for delta in deltas) == sequence.topk_logprobs.token_ids
        assert [delta.stop_reason for delta in deltas if delta.stop_reason] == [sequence.stop_reason]
    end = events[-1].end
    assert list(end.stop_reasons) == ["length"] * 3
    np.testing.assert_allclose(
        np.frombuffer(end.prompt_logprobs, "<f4"), np.frombuffer(whole.prompt_logprobs, "<f4"), atol=1e-5
    )
    assert end.topk_prompt_logprobs.token_ids == whole.topk_prompt_logprobs.token_ids
    assert len(end.prompt_alt_tokens.token_ids) == 2 * len(end.target_prompt_logprobs.logprobs) > 0
    assert end.prompt_alt_tokens.token_ids == whole.prompt_alt_tokens.token_ids


async def test_curl_reads_server_sent_events(http: httpx.AsyncClient) -> None:
    body = {
        "prompt": {"chunks": [{"encoded_text": {"ids": [5, 6, 7]}}]},
        "num_samples": 1,
        "params": {"max_tokens": 3, "ignore_eos": True},
    }
    response = await http.post(paths.SAMPLE_STREAM, json=body, headers={"Accept": "*/*", "Content-Type": paths.JSON})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers[paths.EXACT_POLICY_VERSION] == "0"
    events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in response.text.split("\n\n")[:-1]]
    assert [event["event"] for event in events] == ["begin", *["delta"] * (len(events) - 2), "end"]
    assert json.loads(events[-1]["data"])["end"]["stop_reasons"] == ["length"]


@pytest.mark.parametrize(
    ("message", "headers", "status"),
    [
        (request(max_tokens=-1), {}, 400),
        (request(run_id="r", gate_wait_s=0.1), {"X-Min-Policy-Version": "5"}, 425),
        (request(model_path="bt://loops:none/sampler_weights/x"), {}, 404),
        (request(params=pb.SamplingParams(grammar="start: (")), {}, 400),
    ],
)
async def test_errors_before_the_first_token_have_their_status(
    http: httpx.AsyncClient, message: pb.SampleRequest, headers: dict[str, str], status: int
) -> None:
    response = await http.post(paths.SAMPLE_STREAM, content=message.SerializeToString(), headers=headers)
    assert response.status_code == status, response.text
    assert common_pb2.Error.FromString(response.content).status == status


async def test_a_client_that_goes_away_frees_the_rows(
    http: httpx.AsyncClient, engine: TorchEngine, submissions: Submissions
) -> None:
    message = request(max_tokens=1500)
    async with http.stream("POST", paths.SAMPLE_STREAM, content=message.SerializeToString()) as response:
        await anext(response.aiter_raw())
        assert engine.has_work
    async with asyncio.timeout(10):
        while engine.has_work or not await submissions.settled(1):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_streams_count_as_in_flight_and_are_waited_for(
    http: httpx.AsyncClient, replica: Replica, submissions: Submissions
) -> None:
    long = [asyncio.create_task(said(http, request(max_tokens=300))) for _ in range(4)]
    async with asyncio.timeout(10):
        while submissions._num_watched < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    response = await http.post(paths.SAMPLE_STREAM, content=request().SerializeToString())
    assert response.status_code == 429
    replica.drain()
    assert not await submissions.settled(0.01)
    assert await submissions.settled(60)
    for task in long:
        tokens = b"".join(event.delta.tokens for event in await task)
        assert len(ids_from_bytes(tokens)) == 300


async def test_a_stream_that_says_nothing_yet_sends_heartbeats(
    http: httpx.AsyncClient, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.01)
    message = request(max_tokens=1)
    message.prompt.CopyFrom(model_input_to_proto([5] * 1500))
    async with http.stream("POST", paths.SAMPLE_STREAM, content=message.SerializeToString()) as response:
        data = b"".join([chunk async for chunk in response.aiter_raw()])
    assert b"\0\0\0\0" in data
    assert [pb.SampleEvent.FromString(each).WhichOneof("event") for each in Unframer().push(data)] == [
        "begin",
        "delta",
        "end",
    ]


async def test_a_job_that_fails_late_ends_its_stream_with_an_error(
    http: httpx.AsyncClient, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step() -> None:
        time.sleep(0.3)
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(replica._engine._engine, "step", step)
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.01)
    events = await said(http, request())
    assert [event.WhichOneof("event") for event in events] == ["begin", "error"]
    assert events[-1].error.status == 503


async def test_a_stream_goes_on_with_newer_weights_where_asked(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    replica._swapper.offer(PolicyId("r", 1), make_adapter(1).to_bytes())
    message = request(max_tokens=1000, run_id="r", in_flight="switch")
    unframer, versions = Unframer(), []
    headers = {paths.MIN_POLICY_VERSION: "1"}
    async with http.stream("POST", paths.SAMPLE_STREAM, content=message.SerializeToString(), headers=headers) as said:
        async for chunk in said.aiter_raw():
            if not versions:
                replica._swapper.offer(PolicyId("r", 2), make_adapter(2).to_bytes())
            for data in unframer.push(chunk):
                delta = pb.SampleEvent.FromString(data).delta
                count = len(delta.tokens) // 4
                versions += np.frombuffer(delta.policy_versions, "<i8").tolist() or [1] * count
    assert len(versions) == 1000
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
