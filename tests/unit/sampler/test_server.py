"""A replica through its HTTP routes: the real engine and swapper, policies offered as the feed would."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import httpx
import numpy as np
import pytest
import pytest_asyncio
import uvicorn

from farstep_infra.store.blobs import open_blobs
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_proto import paths
from farstep_proto.errors import NotFound
from farstep_proto.names import CheckpointPath
from farstep_proto.tensors import ids_from_bytes, model_input_to_proto
from farstep_proto.v1 import common_pb2, feed_pb2, operations_pb2, training_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1.feed_pb2_grpc import PolicyFeedServicer, add_PolicyFeedServicer_to_server
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.feed import FeedConfig
from farstep_sampler.replica import Replica
from farstep_sampler.request import ModelLimits
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions
from farstep_sampler.versions import AtLeast, Exactly, PolicyId
from farstep_sampler.weight_sync import SyncConfig
from farstep_serving.keys import OPERATOR, KeyRing
from farstep_serving.process import bind, url_of

KEY = "fsk-test"
MakeAdapter = Callable[..., Adapter]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store")


@pytest_asyncio.fixture
async def replica(base: BaseModel, engine: TorchEngine, store: CheckpointStore) -> AsyncIterator[Replica]:
    limits = ModelLimits(base.max_seq_len, base.vocab_size, base.eos_token_ids)
    made = Replica(base, EngineThread(engine), limits=limits, store=store, policies=None)
    async with made.running():
        yield made


@pytest_asyncio.fixture
async def http(replica: Replica) -> AsyncIterator[httpx.AsyncClient]:
    async with Submissions(max_pending=50) as submissions:
        app = make_sampler_app(replica, submissions, keys=KeyRing.of(KEY))
        headers = {"Authorization": f"Bearer {KEY}", "Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://sampler", headers=headers) as client:
            yield client


def request(tokens: list[int] | None = None, **fields: object) -> pb.SampleRequest:
    params = {"max_tokens": 8, "seed": 1, "ignore_eos": True} | dict(fields.pop("params", {}))  # type: ignore[call-overload]
    message = pb.SampleRequest(
        prompt=model_input_to_proto(tokens or [5, 6, 7, 8]), num_samples=1, params=pb.SamplingParams(**params)
    )
    message.MergeFrom(pb.SampleRequest(**fields))
    return message


async def sample(http: httpx.AsyncClient, message: pb.SampleRequest, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.post(paths.SAMPLE, content=message.SerializeToString(), headers=named)


async def sampled(http: httpx.AsyncClient, message: pb.SampleRequest, **headers: str) -> pb.SampleResponse:
    response = await sample(http, message, **headers)
    assert response.status_code == 200, response.text
    return pb.SampleResponse.FromString(response.content)


def error_of(response: httpx.Response) -> common_pb2.Error:
    return common_pb2.Error.FromString(response.content)


def offer(replica: Replica, run_id: str, version: int, adapter: Adapter) -> None:
    replica._swapper.offer(PolicyId(run_id, version), adapter.to_bytes())


async def poll(http: httpx.AsyncClient, client_id: str, *ack: str) -> operations_pb2.PollResponse:
    message = operations_pb2.PollRequest(client_id=client_id, ack=ack, wait_s=10)
    response = await http.post(paths.POLL, content=message.SerializeToString())
    return operations_pb2.PollResponse.FromString(response.content)


async def test_a_sample_has_everything_that_was_asked_for(http: httpx.AsyncClient) -> None:
    message = request(include_prompt_logprobs=True, topk_logprobs=2, topk_prompt_logprobs=3)
    message.num_samples = 2
    response = await sampled(http, message)
    assert [len(ids_from_bytes(sequence.tokens)) for sequence in response.sequences] == [8, 8]
    assert response.policy_version == 0
    first = response.sequences[0]
    assert np.frombuffer(first.logprobs, "<f4").shape == (8,)
    assert first.stop_reason == "length"
    assert first.policy_versions == b""
    assert first.topk_logprobs.k == 2
    assert len(first.topk_logprobs.token_ids) == 8 * 2 * 4
    prompt = np.frombuffer(response.prompt_logprobs, "<f4")
    assert np.isnan(prompt).tolist() == [True, False, False, False]
    assert ids_from_bytes(response.topk_prompt_logprobs.token_ids)[:3].tolist() == [-1, -1, -1]
    again = await sampled(http, message)
    assert again.sequences[0].tokens == first.tokens


async def test_json_by_hand(http: httpx.AsyncClient) -> None:
    body = {
        "prompt": {"chunks": [{"encoded_text": {"ids": [5, 6, 7]}}]},
        "num_samples": 1,
        "params": {"max_tokens": 3, "stop_strings": ["zzz"]},
    }
    response = await http.post(paths.SAMPLE, json=body, headers={"Accept": paths.JSON, "Content-Type": paths.JSON})
    assert response.status_code == 200
    assert response.json()["sequences"][0]["stop_reason"] in ("length", "stop")


async def test_a_published_policy_answers_its_run(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    base_tokens = (await sampled(http, request(run_id="r"))).sequences[0].tokens
    offer(replica, "r", 1, make_adapter(1))
    served = await sampled(http, request(run_id="r"), X_Min_Policy_Version="1")
    assert served.policy_version == 1
    assert served.sequences[0].tokens != base_tokens
    exact = await sampled(http, request(run_id="r"), X_Policy_Version="0")
    assert exact.policy_version == 0
    assert exact.sequences[0].tokens == base_tokens
    other = await sampled(http, request(run_id="other"))
    assert other.sequences[0].tokens == base_tokens


async def test_policies_arrive_by_the_feed(
    base: BaseModel,
    engine: TorchEngine,
    store: CheckpointStore,
    make_adapter: MakeAdapter,
    until: Until,
) -> None:
    data = make_adapter(1).to_bytes()
    header = feed_pb2.PolicyHeader(run_id="r", version=4, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    class Feed(PolicyFeedServicer):  # type: ignore[misc]
        async def Subscribe(self, request: object, context: object) -> AsyncIterator[feed_pb2.PolicyEvent]:
            yield feed_pb2.PolicyEvent(header=header)
            yield feed_pb2.PolicyEvent(chunk=data)
            await asyncio.sleep(3600)

    server = grpc.aio.server()
    add_PolicyFeedServicer_to_server(Feed(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    limits = ModelLimits(base.max_seq_len, base.vocab_size, base.eos_token_ids)
    feed = FeedConfig(f"127.0.0.1:{port}", None, "test")
    replica = Replica(base, EngineThread(engine), limits=limits, store=store, policies=feed)
    async with replica.running():
        response = await replica.prepare(request(run_id="r"), AtLeast(4), OPERATOR)()
        replica.check_health()
    await server.stop(None)
    assert response.policy_version == 4


async def test_a_recalled_policy_may_be_overtaken(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    for i in range(6):  # there are four slots: the first runs are retired
        offer(replica, f"run-{i}", 1, make_adapter(i + 1))
        await sampled(http, request(run_id=f"run-{i}"), X_Min_Policy_Version="1")
    recalled = asyncio.create_task(sampled(http, request(run_id="run-0")))
    offer(replica, "run-0", 2, make_adapter(1))
    assert (await recalled).policy_version in (1, 2)
    assert (await sampled(http, request(run_id="run-0"), X_Min_Policy_Version="2")).policy_version == 2
    assert (await http.get(paths.HEALTH)).status_code == 200


async def test_exact_pins_go_on_while_newer_versions_arrive(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    tokens = {}
    for version in (1, 2):
        offer(replica, "r", version, make_adapter(version))
        response = await sampled(http, request(run_id="r"), X_Min_Policy_Version=str(version))
        tokens[version] = response.sequences[0].tokens
    pinned = await sampled(http, request(run_id="r"), X_Policy_Version="1")
    assert (pinned.policy_version, pinned.sequences[0].tokens) == (1, tokens[1])
    newest = await sampled(http, request(run_id="r"), X_Min_Policy_Version="1")
    assert (newest.policy_version, newest.sequences[0].tokens) == (2, tokens[2])


async def test_the_gate_waits_for_a_version(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    waiting = asyncio.create_task(sampled(http, request(run_id="r"), X_Min_Policy_Version="2"))
    await asyncio.sleep(0.05)
    offer(replica, "r", 1, make_adapter(1))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    offer(replica, "r", 2, make_adapter(2))
    assert (await waiting).policy_version == 2


async def test_the_gate_ends_in_425_with_both_versions(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    offer(replica, "r", 1, make_adapter(1))
    await sampled(http, request(run_id="r"), X_Min_Policy_Version="1")
    for header in ("X_Min_Policy_Version", "X_Policy_Version"):
        began = time.monotonic()
        response = await sample(http, request(run_id="r", gate_wait_s=0.1), **{header: "5"})
        assert time.monotonic() - began < 5
        assert response.status_code == 425
        assert int(response.headers["Retry-After"]) >= 1
        error = error_of(response)
        assert (error.wanted_version, error.newest_version) == (5, 1)
    assert (await sampled(http, request(run_id="r", gate_wait_s=0.0))).policy_version == 1


async def test_a_version_that_will_never_come_is_not_waited_for(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    offer(replica, "r", 3, make_adapter(1))
    await sampled(http, request(run_id="r"), X_Min_Policy_Version="3")
    response = await sample(http, request(run_id="r"), X_Policy_Version="2")
    assert response.status_code == 404
    assert (error_of(response).wanted_version, error_of(response).newest_version) == (2, 3)


async def test_more_runs_than_slots_take_turns(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    runs = [f"run-{i}" for i in range(6)]  # there are four slots
    tokens = {}
    for i, run_id in enumerate(runs):
        offer(replica, run_id, 1, make_adapter(i + 1))
        tokens[run_id] = (await sampled(http, request(run_id=run_id), X_Min_Policy_Version="1")).sequences[0].tokens
    assert len(set(tokens.values())) == len(runs)
    for run_id in runs:
        assert (await sampled(http, request(run_id=run_id))).sequences[0].tokens == tokens[run_id]


async def test_a_swap_stops_no_sequence_and_mixes_with_it(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    offer(replica, "r", 1, make_adapter(1))
    long = request(run_id="r", params={"max_tokens": 300, "seed": 3})
    alone = await sampled(http, long, X_Min_Policy_Version="1")
    running = [asyncio.create_task(sampled(http, long)) for _ in range(3)]
    await asyncio.sleep(0.05)
    for version in range(2, 12):  # more than there are slots
        offer(replica, "r", version, make_adapter(version))
        served = await sampled(http, request(run_id="r"), X_Min_Policy_Version=str(version))
        assert served.policy_version == version
    for response in await asyncio.gather(*running):
        assert response.policy_version == 1
        assert response.sequences[0].tokens == alone.sequences[0].tokens


async def test_a_policy_that_cannot_be_loaded_stops_nothing(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    offer(replica, "r", 1, make_adapter(1))
    await sampled(http, request(run_id="r"), X_Min_Policy_Version="1")
    replica._swapper.offer(PolicyId("r", 2), b"not an adapter")
    response = await sample(http, request(run_id="r", gate_wait_s=0.2), X_Min_Policy_Version="2")
    assert response.status_code == 425
    assert "r@v2 cannot be loaded" in caplog.text
    offer(replica, "r", 3, make_adapter(3))
    assert (await sampled(http, request(run_id="r"), X_Min_Policy_Version="2")).policy_version == 3


async def test_policies_are_listed_and_waited_for(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    early = await http.get("/v1/policies/r?min_version=1&wait_s=0.05")
    assert early.status_code == 425
    waiting = asyncio.create_task(http.get("/v1/policies/r?min_version=1&wait_s=10"))
    await asyncio.sleep(0.05)
    offer(replica, "r", 1, make_adapter(1))
    state = pb.PolicyState.FromString((await waiting).content)
    assert (state.run_id, state.newest_version, list(state.resident_versions)) == ("r", 1, [1])
    listed = pb.ListPoliciesResponse.FromString((await http.get(paths.POLICIES)).content)
    assert list(listed.policies) == [state]
    unknown = pb.PolicyState.FromString((await http.get("/v1/policies/nobody")).content)
    assert unknown.newest_version == 0
    assert (await http.get("/v1/policies/r?min_version=x")).status_code == 400


async def test_a_checkpoint_is_loaded_on_first_use(
    http: httpx.AsyncClient, replica: Replica, store: CheckpointStore, base: BaseModel, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(2)
    path = CheckpointPath("r", "sampler_weights", "kept")
    store.write(path, adapter.files(base.name), {"base_model": base.name, "policy_version": 7})
    offer(replica, "r", 8, adapter)
    published = await sampled(http, request(run_id="r"), X_Min_Policy_Version="8")
    kept = await asyncio.gather(*(sampled(http, request(model_path=str(path))) for _ in range(3)))
    for response in kept:
        assert response.policy_version == 7
        assert response.sequences == published.sequences
    body = pb.LoadPolicyRequest(model_path=f"tinker://{path.checkpoint_id}").SerializeToString()
    state = pb.PolicyState.FromString((await http.post(paths.LOAD_POLICY, content=body)).content)
    assert (state.model_path, list(state.resident_versions)) == (str(path), [7])


async def test_a_checkpoint_that_does_not_fit_is_refused(
    http: httpx.AsyncClient, store: CheckpointStore, make_adapter: MakeAdapter
) -> None:
    path = CheckpointPath("r", "weights", "other")
    store.write(path, make_adapter(1).files("other/model"), {"base_model": "other/model"})
    response = await sample(http, request(model_path=str(path)))
    assert response.status_code == 400
    assert error_of(response).field == "model_path"
    assert "other/model" in error_of(response).message
    missing = CheckpointPath("r", "weights", "missing")
    assert (await sample(http, request(model_path=str(missing)))).status_code == 404


@pytest.mark.parametrize(
    ("message", "headers", "field"),
    [
        (request([1, 1_000_000]), {}, "prompt"),
        (request(params={"temperature": -1.0}), {}, "params.temperature"),
        (request(params={"max_tokens": 5000}), {}, "params.max_tokens"),
        (request(), {"X_Min_Policy_Version": "3"}, "run_id"),
        (request(run_id="r"), {"X_Min_Policy_Version": "x"}, "X-Min-Policy-Version"),
        (request(run_id="r"), {"X_Min_Policy_Version": "1", "X_Policy_Version": "1"}, "X-Policy-Version"),
    ],
)
async def test_bad_input_is_named_on_both_routes(
    http: httpx.AsyncClient, message: pb.SampleRequest, headers: dict[str, str], field: str
) -> None:
    waits = await sample(http, message, **headers)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    submits = await http.post(paths.SAMPLES, content=message.SerializeToString(), headers=named)
    for response in (waits, submits):
        assert response.status_code == 400
        assert error_of(response).field == field
    await sampled(http, request())


async def test_submit_and_poll(http: httpx.AsyncClient) -> None:
    headers = {paths.CLIENT_ID: "me"}
    keys = [f"k:{i}" for i in range(10)]
    for key in keys:
        for _ in range(2):  # a retry is the same sample
            body = request().SerializeToString()
            response = await http.post(f"{paths.SAMPLES}?key={key}", content=body, headers=headers)
            assert response.status_code == 202
            assert operations_pb2.Accepted.FromString(response.content).operation_id == key
    other = await http.post(f"{paths.SAMPLES}?key={keys[0]}", content=request([9]).SerializeToString(), headers=headers)
    assert other.status_code == 409
    finished: dict[str, operations_pb2.Operation] = {}
    while len(finished) < len(keys):
        for operation in (await poll(http, "me", *finished)).finished:
            finished[operation.operation_id] = operation
    expected = (await sampled(http, request())).sequences[0].tokens
    assert {operation.sample.sequences[0].tokens for operation in finished.values()} == {expected}


async def test_a_failed_sample_is_an_outcome(http: httpx.AsyncClient) -> None:
    body = request(run_id="r", gate_wait_s=0.05).SerializeToString()
    headers = {paths.CLIENT_ID: "me", paths.MIN_POLICY_VERSION: "1"}
    await http.post(f"{paths.SAMPLES}?key=a", content=body, headers=headers)
    (operation,) = (await poll(http, "me")).finished
    assert operation.state == operations_pb2.OPERATION_STATE_FAILED
    assert operation.error.status == 425


async def test_a_sample_can_be_cancelled_while_it_runs(
    http: httpx.AsyncClient, engine: TorchEngine, until: Until
) -> None:
    body = request(params={"max_tokens": 2000}).SerializeToString()
    await http.post(f"{paths.SAMPLES}?key=a", content=body, headers={paths.CLIENT_ID: "me"})
    await asyncio.sleep(0.05)
    response = await http.post("/v1/operations/a/cancel")
    assert operations_pb2.CancelResponse.FromString(response.content).cancelled
    (operation,) = (await poll(http, "me")).finished
    assert operation.state == operations_pb2.OPERATION_STATE_CANCELLED
    await until(lambda: not engine.has_work)
    again = await http.post("/v1/operations/a/cancel")
    assert not operations_pb2.CancelResponse.FromString(again.content).cancelled


async def test_too_many_in_flight_are_refused_and_may_come_back(http: httpx.AsyncClient) -> None:
    body = request(run_id="r", gate_wait_s=30).SerializeToString()
    headers = {paths.CLIENT_ID: "me", paths.MIN_POLICY_VERSION: "1"}
    responses = [await http.post(f"{paths.SAMPLES}?key={i}", content=body, headers=headers) for i in range(51)]
    assert [response.status_code for response in responses] == [202] * 50 + [429]
    assert "Retry-After" in responses[-1].headers
    assert (await sample(http, request())).status_code == 429
    repeated = await http.post(f"{paths.SAMPLES}?key=3", content=body, headers=headers)
    assert repeated.status_code == 202


async def test_what_it_is(http: httpx.AsyncClient, base: BaseModel) -> None:
    info = training_pb2.ServerInfo.FromString((await http.get(paths.INFO)).content)
    assert (info.role, info.engine, info.base_model) == ("sampler", "torch", base.name)
    assert (info.vocab_size, info.max_seq_len, info.dtype) == (base.vocab_size, base.max_seq_len, "float32")
    files = training_pb2.TokenizerFiles.FromString((await http.get(paths.TOKENIZER)).content)
    assert "tokenizer.json" in files.files
    content = b"".join(name.encode() + b"\0" + files.files[name] for name in sorted(files.files))
    assert files.sha256 == hashlib.sha256(content).hexdigest()


async def test_keys(http: httpx.AsyncClient) -> None:
    assert (await http.get(paths.INFO, headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (await http.get(paths.HEALTH, headers={"Authorization": ""})).status_code == 200


async def test_a_stopped_engine_is_unhealthy_and_says_so(
    http: httpx.AsyncClient,
    replica: Replica,
    engine: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    until: Until,
) -> None:
    def broken() -> None:
        raise AssertionError("a mistake of ours")

    monkeypatch.setattr(engine, "step", broken)
    assert (await sample(http, request())).status_code == 503  # a router takes it elsewhere
    await until(lambda: not replica._engine.is_alive)
    assert (await http.get(paths.HEALTH)).status_code == 500
    assert (await sample(http, request())).status_code == 503  # a router takes it elsewhere


async def test_a_client_that_goes_away_frees_its_rows(replica: Replica, engine: TorchEngine, until: Until) -> None:
    async with Submissions(max_pending=5) as submissions:
        app = make_sampler_app(replica, submissions, keys=KeyRing.of())
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        sock = bind("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        message = request(params={"max_tokens": 2000})
        message.num_samples = 32
        body = message.SerializeToString()
        async with httpx.AsyncClient(base_url=url_of(sock), headers={"Content-Type": paths.PROTOBUF}) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(paths.SAMPLE, content=body, timeout=0.3)
        began = time.monotonic()
        await until(lambda: not engine.has_work)
        assert time.monotonic() - began < 2  # the samples take much longer
        server.should_exit = True
        await serving


async def test_a_retired_version_is_fetched_back_and_one_that_nobody_keeps_is_a_clear_no(
    http: httpx.AsyncClient, replica: Replica, store: CheckpointStore, make_adapter: MakeAdapter
) -> None:
    """Four slots, seven versions: the store's shelf has the last five of them, a checkpoint has the first."""
    shelves = PolicyShelves.of_store(store, keep=5)
    tokens = {}
    for version in range(1, 8):
        adapter = make_adapter(version)
        data = adapter.to_bytes()
        config = adapter.files("farstep/tiny")["adapter_config.json"]
        files = {"adapter_model.safetensors": data, "adapter_config.json": config}
        shelves.put(ShelvedPolicy("r", version, "h", 1.0, files))
        if version == 1:
            meta = {"policy_version": 1, "history": "h"}
            store.write(CheckpointPath("r", "sampler_weights", "first"), adapter.files("farstep/tiny"), meta)
        replica._swapper.offer(PolicyId("r", version, "h"), data)
        response = await sampled(http, request(run_id="r"), X_Policy_Version=str(version))
        tokens[version] = response.sequences[0].tokens
    assert len(set(tokens.values())) == 7
    for version in tokens:  # nothing is remembered here: all comes from the store
        replica._swapper._recent.forget(PolicyId("r", version, "h"))
    for version in (3, 1, 4, 6, 3):
        response = await sampled(http, request(run_id="r"), X_Policy_Version=str(version))
        assert (response.policy_version, response.sequences[0].tokens) == (version, tokens[version])
    assert (await sampled(http, request(run_id="r"))).policy_version == 7
    began = time.monotonic()
    refused = await sample(http, request(run_id="r"), X_Policy_Version="2")
    assert time.monotonic() - began < 5
    assert refused.status_code == 404
    assert "is not kept any more; the newest is 7, at hand are " in error_of(refused).message
    assert (error_of(refused).wanted_version, error_of(refused).newest_version) == (2, 7)


async def test_what_is_kept_but_damaged_is_not_served(
    http: httpx.AsyncClient, replica: Replica, store: CheckpointStore, make_adapter: MakeAdapter
) -> None:
    shelves = PolicyShelves.of_store(store, keep=5)
    offer(replica, "r", 2, make_adapter(2))
    await sampled(http, request(run_id="r"), X_Min_Policy_Version="2")
    files = {"adapter_model.safetensors": make_adapter(1).to_bytes(), "adapter_config.json": b""}
    shelves.put(ShelvedPolicy("r", 1, "", 1.0, files))
    blobs, key = store.private("policies~"), "r/v1-/adapter_model.safetensors"
    damaged = bytearray(blobs.get(key))
    damaged[-1] ^= 1
    blobs.put(key, bytes(damaged))
    refused = await sample(http, request(run_id="r"), X_Policy_Version="1")
    assert refused.status_code == 404
    offer(replica, "r", 3, make_adapter(3))
    assert (await sampled(http, request(run_id="r"), X_Min_Policy_Version="3")).policy_version == 3


async def test_another_history_of_a_run_is_served_and_the_old_one_is_not(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    replica._swapper.offer(PolicyId("r", 7, "old"), make_adapter(1).to_bytes())
    old = await sampled(http, request(run_id="r"), X_Min_Policy_Version="7")
    replica._swapper.offer(PolicyId("r", 1, "new"), make_adapter(2).to_bytes())
    response = await sampled(http, request(run_id="r"), X_Policy_Version="1")
    assert (response.policy_version, response.sequences[0].tokens != old.sequences[0].tokens) == (1, True)
    assert (await sample(http, request(run_id="r", gate_wait_s=0.05), X_Min_Policy_Version="7")).status_code == 425
    assert "begin anew" in caplog.text


async def test_a_draining_replica_ends_what_it_has_and_takes_nothing_new(
    http: httpx.AsyncClient, replica: Replica
) -> None:
    long = asyncio.create_task(sampled(http, request(params={"max_tokens": 300})))
    waiting = asyncio.create_task(sample(http, request(run_id="r"), X_Min_Policy_Version="1"))
    await asyncio.sleep(0.05)
    assert (await http.post(paths.DRAIN)).status_code == 200
    assert (await waiting).status_code == 503
    assert (await sample(http, request())).status_code == 503
    assert (await http.get(paths.HEALTH)).status_code == 503
    state = pb.ListPoliciesResponse.FromString((await http.get(f"{paths.POLICIES}?after=99&wait_s=30")).content)
    assert state.draining
    assert len(ids_from_bytes((await long).sequences[0].tokens)) == 300


async def test_whoever_asks_is_told_when_something_new_is_served(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter
) -> None:
    async def listed(after: int, wait_s: float) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse.FromString(
            (await http.get(f"{paths.POLICIES}?after={after}&wait_s={wait_s}")).content
        )

    before = await listed(0, 0.01)
    assert list(before.policies) == []
    told = asyncio.create_task(listed(before.revision, 30))
    await asyncio.sleep(0.05)
    assert not told.done()
    offer(replica, "r", 1, make_adapter(1))
    state = await told
    while not state.policies:  # the run was heard of first
        state = await listed(state.revision, 30)
    assert [(policy.run_id, policy.newest_version) for policy in state.policies] == [("r", 1)]
    assert (await http.get(f"{paths.POLICIES}?after=x")).status_code == 400


@pytest.mark.parametrize("is_damaged_first", [False, True])
async def test_policies_arrive_by_a_weight_sync_uri(
    base: BaseModel,
    engine: TorchEngine,
    table: AdapterTable,
    store: CheckpointStore,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    is_damaged_first: bool,
) -> None:
    shelves = PolicyShelves(open_blobs(f"file://{tmp_path}/sync"), keep=3)
    limits = ModelLimits(base.max_seq_len, base.vocab_size, base.eos_token_ids)
    sync = SyncConfig(shelves, interval_s=0.02)

    def put(version: int) -> bytes:
        adapter = make_adapter(version)
        config = adapter.files("farstep/tiny")["adapter_config.json"]
        files = {"adapter_model.safetensors": adapter.to_bytes(), "adapter_config.json": config}
        shelves.put(ShelvedPolicy("r", version, "h", 1.0, files))
        return files["adapter_model.safetensors"]

    replica = Replica(base, EngineThread(engine), limits=limits, store=store, policies=sync)
    async with replica.running():
        good = put(1)
        weights = tmp_path / "sync" / "r" / "v1-h" / "adapter_model.safetensors"
        if is_damaged_first:
            weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        waiting = asyncio.create_task(replica.prepare(request(run_id="r"), AtLeast(1), OPERATOR)())
        if is_damaged_first:
            await asyncio.sleep(0.3)
            assert not waiting.done()
            weights.write_bytes(good)
        assert (await waiting).policy_version == 1
        for version in (2, 3):
            put(version)
            assert (await replica.prepare(request(run_id="r"), AtLeast(version), OPERATOR)()).policy_version == version
        (tmp_path / "sync" / "not a run").mkdir()
        put(7)
        assert (await replica.prepare(request(run_id="r"), Exactly(7), OPERATOR)()).policy_version == 7
        with pytest.raises(NotFound, match="at hand are 1, 2, 3, 7"):
            await replica.prepare(request(run_id="r"), Exactly(6), OPERATOR)()


async def test_sequences_switch_to_a_newer_version_when_asked_to(
    http: httpx.AsyncClient, replica: Replica, make_adapter: MakeAdapter, until: Until
) -> None:
    offer(replica, "r", 1, make_adapter(1))
    await sampled(http, request(run_id="r"), X_Min_Policy_Version="1")
    message = request(run_id="r", in_flight="switch", params={"max_tokens": 600})
    running = asyncio.create_task(sampled(http, message))
    staying = asyncio.create_task(sampled(http, request(run_id="r", params={"max_tokens": 600})))
    await until(lambda: bool(replica._engine._in_flight))
    offer(replica, "r", 2, make_adapter(2))
    response = await running
    assert response.policy_version == 1
    versions = np.frombuffer(response.sequences[0].policy_versions, "<i8").tolist()
    assert set(versions) == {1, 2}
    assert versions == sorted(versions)
    tokens = ids_from_bytes((await staying).sequences[0].tokens).tolist()
    switched = ids_from_bytes(response.sequences[0].tokens).tolist()
    first_new = versions.index(2)
    assert switched[:first_new] == tokens[:first_new]
    assert switched != tokens
    assert (await staying).sequences[0].policy_versions == b""
    assert all(entry.num_pins == 0 for entry in replica._table._entries.values())
    refused = await sample(http, message, X_Policy_Version="1")
    assert refused.status_code == 400
    assert error_of(refused).field == "in_flight"


async def test_a_thousand_requests_at_once(
    base: BaseModel, engine: TorchEngine, make_job: Callable[..., object]
) -> None:
    thread = EngineThread(engine)
    thread.start()
    jobs = [make_job([5 + i % 300, 6, 7], max_tokens=3 + i % 5, seed=i) for i in range(1000)]
    results = await asyncio.gather(*(thread.sample(job, slot=i % 4) for i, job in enumerate(jobs)))
    assert [len(result.sequences[0].tokens) for result in results] == [3 + i % 5 for i in range(1000)]
    assert engine.held_tokens == 0
    await thread.close()
