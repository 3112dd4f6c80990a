"""The router before replicas whose engines are faked: real routes, real polls, answers that name their replica."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest_asyncio

from farstep_proto import paths
from farstep_proto.errors import ApiError, PolicyNotReady, TooManyRequests
from farstep_proto.tensors import model_input_to_proto
from farstep_proto.v1 import common_pb2, operations_pb2, training_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.replica_link import ReplicaLink
from farstep_sampler.router import Router
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions, Work
from farstep_sampler.versions import AtLeast, VersionGate
from farstep_serving.keys import KeyRing

KEY = "fsk-router"
Until = Callable[[Callable[[], bool]], Awaitable[None]]


@dataclass
class FakeReplica:
    """Answers with its number as the prompt cache hits, when `open_gate` is set; fails with `error` if there is one."""

    number: int
    versions: list[int] = field(default_factory=list)
    error: ApiError | None = None
    open_gate: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[tuple[pb.SampleRequest, VersionGate]] = field(default_factory=list)
    num_cancelled: int = 0

    def prepare(self, request: pb.SampleRequest, gate: VersionGate) -> Work:
        async def work() -> pb.SampleResponse:
            self.seen.append((request, gate))
            if self.error is not None:
                raise self.error
            if gate.version > max([0, *self.versions]):
                raise PolicyNotReady("not here", wanted_version=gate.version, newest_version=0, retry_after_s=1)
            try:
                await self.open_gate.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
            return pb.SampleResponse(prompt_cache_hit_tokens=self.number)

        return work

    async def list_policies(self) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse(policies=[self.state()] if self.versions else [])

    async def wait_for_policy(self, run_id: str, *, min_version: int, wait_s: float) -> pb.PolicyState:
        if max([0, *self.versions]) < min_version:
            await asyncio.sleep(wait_s)
            raise PolicyNotReady("not here", wanted_version=min_version, newest_version=0)
        return self.state()

    async def load_policy(self, model_path: str) -> pb.PolicyState:
        return pb.PolicyState(model_path=model_path)

    async def info(self) -> training_pb2.ServerInfo:
        return training_pb2.ServerInfo(role="sampler", base_model="m", vocab_size=100, max_seq_len=50)

    async def tokenizer(self) -> training_pb2.TokenizerFiles:
        return training_pb2.TokenizerFiles(sha256="abc")

    def check_health(self) -> None:
        return

    def state(self) -> pb.PolicyState:
        return pb.PolicyState(run_id="r", newest_version=max(self.versions), resident_versions=self.versions)


@dataclass
class Wire(httpx.AsyncBaseTransport):
    """The way to a replica, which can be cut."""

    app: httpx.AsyncBaseTransport
    is_cut: bool = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_cut:
            raise httpx.ConnectError("cut")
        response = await self.app.handle_async_request(request)
        if self.is_cut:
            raise httpx.ReadError("cut")
        return response


@dataclass
class Fleet:
    http: httpx.AsyncClient
    replicas: list[FakeReplica]
    wires: list[Wire]
    links: list[ReplicaLink]

    async def sample(self, message: pb.SampleRequest | None = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = (message or request()).SerializeToString()
        return await self.http.post(paths.SAMPLE, content=body, headers=named)

    async def number(self, message: pb.SampleRequest | None = None, **headers: str) -> int:
        """Which replica answered."""
        response = await self.sample(message, **headers)
        assert response.status_code == 200, response.text
        return pb.SampleResponse.FromString(response.content).prompt_cache_hit_tokens


def request(**fields: object) -> pb.SampleRequest:
    return pb.SampleRequest(prompt=model_input_to_proto([1, 2]), num_samples=1, run_id="r", **fields)


@asynccontextmanager
async def serving(replica: FakeReplica) -> AsyncIterator[httpx.AsyncBaseTransport]:
    async with Submissions(max_pending=50) as submissions:
        yield httpx.ASGITransport(make_sampler_app(replica, submissions, keys=KeyRing.of(KEY)))


@pytest_asyncio.fixture
async def fleet(until: Until) -> AsyncIterator[Fleet]:
    replicas = [FakeReplica(1), FakeReplica(2)]
    async with AsyncExitStack() as stack:
        wires = [Wire(await stack.enter_async_context(serving(replica))) for replica in replicas]
        links = [ReplicaLink(f"http://{i}", key=KEY, transport=wire) for i, wire in enumerate(wires)]
        router = Router(links)
        submissions = await stack.enter_async_context(Submissions(max_pending=50))
        await stack.enter_async_context(router.running())
        app = make_sampler_app(router, submissions, keys=KeyRing.of(KEY))
        headers = {"Authorization": f"Bearer {KEY}", "Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF}
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router", headers=headers)
        )
        await until(lambda: all(link.is_healthy for link in links))
        for replica in replicas:
            replica.open_gate.set()
        yield Fleet(http, replicas, wires, links)


async def test_the_least_busy_replica_answers(fleet: Fleet, until: Until) -> None:
    for replica in fleet.replicas:
        replica.open_gate.clear()
    waiting = [asyncio.create_task(fleet.number()) for _ in range(10)]
    await until(lambda: sum(len(replica.seen) for replica in fleet.replicas) == 10)
    assert [link.num_in_flight for link in fleet.links] == [5, 5]
    for replica in fleet.replicas:
        replica.open_gate.set()
    assert sorted(await asyncio.gather(*waiting)) == [1] * 5 + [2] * 5


async def test_an_affinity_key_stays_with_its_replica(fleet: Fleet) -> None:
    numbers = {key: await fleet.number(request(affinity_key=key)) for key in map(str, range(20))}
    assert set(numbers.values()) == {1, 2}
    for key, number in numbers.items():
        assert await fleet.number(request(affinity_key=key)) == number
    fleet.links[0].is_healthy = False
    for key, number in numbers.items():
        if number == 2:
            assert await fleet.number(request(affinity_key=key)) == 2


async def test_a_gate_leads_to_the_replica_that_satisfies_it(fleet: Fleet, until: Until) -> None:
    fleet.replicas[1].versions = [3, 4]
    await until(lambda: "r" in fleet.links[1].policies)
    for _ in range(4):
        assert await fleet.number(X_Min_Policy_Version="4") == 2
        assert await fleet.number(X_Policy_Version="3") == 2
    assert fleet.replicas[1].seen[-2][1] == AtLeast(4)
    assert fleet.replicas[0].seen == []


async def test_a_gate_that_none_satisfies_is_the_replicas_425(fleet: Fleet) -> None:
    response = await fleet.sample(X_Min_Policy_Version="9")
    assert response.status_code == 425
    assert common_pb2.Error.FromString(response.content).wanted_version == 9
    assert response.headers["Retry-After"] == "1"


async def test_waiting_for_a_policy_ends_with_the_first_replica_that_has_it(fleet: Fleet) -> None:
    fleet.replicas[1].versions = [1]
    async with asyncio.timeout(5):
        response = await fleet.http.get("/v1/policies/r?min_version=1&wait_s=30")
    assert pb.PolicyState.FromString(response.content).newest_version == 1
    assert await fleet.number(X_Min_Policy_Version="1") == 2  # it is known at once
    assert (await fleet.http.get("/v1/policies/r?min_version=2&wait_s=0.05")).status_code == 425


async def test_what_was_on_a_dead_replica_is_sampled_elsewhere(fleet: Fleet, until: Until) -> None:
    for replica in fleet.replicas:
        replica.open_gate.clear()
    waiting = [asyncio.create_task(fleet.number()) for _ in range(8)]
    await until(lambda: [len(replica.seen) for replica in fleet.replicas] == [4, 4])
    fleet.wires[0].is_cut = True
    fleet.replicas[1].open_gate.set()
    assert await asyncio.gather(*waiting) == [2] * 8
    assert await fleet.number() == 2
    fleet.wires[0].is_cut = False
    fleet.replicas[0].open_gate.set()
    await until(lambda: fleet.links[0].is_healthy)
    assert {await fleet.number(request(affinity_key=str(i))) for i in range(20)} == {1, 2}


async def test_an_overloaded_replica_is_passed_over(fleet: Fleet) -> None:
    fleet.replicas[0].error = TooManyRequests("full", retry_after_s=2)
    assert [await fleet.number() for _ in range(3)] == [2, 2, 2]
    fleet.replicas[1].error = TooManyRequests("full", retry_after_s=2)
    response = await fleet.sample()
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "2"


async def test_without_any_replica_it_says_so(fleet: Fleet, until: Until) -> None:
    for wire in fleet.wires:
        wire.is_cut = True
    await until(lambda: not any(link.is_healthy for link in fleet.links))
    assert (await fleet.sample()).status_code == 503
    assert (await fleet.http.get(paths.HEALTH)).status_code == 503


async def test_bad_input_is_refused_before_it_travels(fleet: Fleet) -> None:
    message = request()
    message.num_samples = 0
    response = await fleet.http.post(paths.SAMPLES, content=message.SerializeToString())
    assert response.status_code == 400
    assert common_pb2.Error.FromString(response.content).field == "num_samples"
    assert not any(replica.seen for replica in fleet.replicas)


async def test_submit_poll_and_cancel_as_on_a_replica(fleet: Fleet, until: Until) -> None:
    fleet.replicas[0].open_gate.clear()
    fleet.replicas[1].open_gate.clear()
    headers = {paths.CLIENT_ID: "me"}
    for key in ("a", "b"):
        body = request().SerializeToString()
        assert (await fleet.http.post(f"{paths.SAMPLES}?key={key}", content=body, headers=headers)).status_code == 202
    await until(lambda: sum(len(replica.seen) for replica in fleet.replicas) == 2)
    await fleet.http.post("/v1/operations/a/cancel")
    await until(lambda: sum(replica.num_cancelled for replica in fleet.replicas) == 1)
    for replica in fleet.replicas:
        replica.open_gate.set()
    finished: dict[str, operations_pb2.Operation] = {}
    while len(finished) < 2:
        poll = operations_pb2.PollRequest(client_id="me", ack=list(finished), wait_s=5).SerializeToString()
        answer = operations_pb2.PollResponse.FromString((await fleet.http.post(paths.POLL, content=poll)).content)
        finished |= {operation.operation_id: operation for operation in answer.finished}
    assert finished["a"].state == operations_pb2.OPERATION_STATE_CANCELLED
    assert finished["b"].sample.prompt_cache_hit_tokens in (1, 2)


async def test_what_it_says_of_itself(fleet: Fleet, until: Until) -> None:
    info = training_pb2.ServerInfo.FromString((await fleet.http.get(paths.INFO)).content)
    assert (info.role, info.base_model) == ("router", "m")
    tokenizer = training_pb2.TokenizerFiles.FromString((await fleet.http.get(paths.TOKENIZER)).content)
    assert tokenizer.sha256 == "abc"
    fleet.replicas[0].versions = [1, 2]
    fleet.replicas[1].versions = [2, 3]
    await until(lambda: all("r" in link.policies for link in fleet.links))
    (state,) = pb.ListPoliciesResponse.FromString((await fleet.http.get(paths.POLICIES)).content).policies
    assert (state.newest_version, list(state.resident_versions)) == (3, [1, 2, 3])
    path = "bt://loops:r/sampler_weights/x"
    body = pb.LoadPolicyRequest(model_path=path).SerializeToString()
    loaded = await fleet.http.post(paths.LOAD_POLICY, content=body)
    assert pb.PolicyState.FromString(loaded.content).model_path == path
