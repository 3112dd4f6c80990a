"""The router before replicas whose engines are faked: real routes, real polls, answers that name their replica."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import pytest_asyncio

from farstep_proto import paths
from farstep_proto.errors import ApiError, Draining, PolicyNotReady, TooManyRequests
from farstep_proto.tensors import model_input_to_proto
from farstep_proto.v1 import common_pb2, operations_pb2, training_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.router.admin import replica_routes
from farstep_sampler.router.backend import Router
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions, Work
from farstep_sampler.versions import AtLeast, VersionGate
from farstep_serving.keys import Caller, KeyRing

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
    revision: int = 1
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_draining: bool = False

    def prepare(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Work:
        if self.is_draining:
            raise Draining("draining")

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

    def publish(self, *versions: int) -> None:
        self.versions = [*versions]
        self.notify()

    def notify(self) -> None:
        self.revision += 1
        self.changed.set()
        self.changed = asyncio.Event()

    def drain(self) -> None:
        self.is_draining = True
        self.notify()

    async def list_policies(self, caller: Caller, *, after: int, wait_s: float) -> pb.ListPoliciesResponse:
        if self.revision <= after and not self.is_draining:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), wait_s)
        policies = [self.state()] if self.versions else []
        return pb.ListPoliciesResponse(policies=policies, revision=self.revision, draining=self.is_draining)

    async def wait_for_policy(self, run_id: str, caller: Caller, *, min_version: int, wait_s: float) -> pb.PolicyState:
        if max([0, *self.versions]) < min_version:
            await asyncio.sleep(wait_s)
            raise PolicyNotReady("not here", wanted_version=min_version, newest_version=0)
        return self.state()

    async def load_policy(self, model_path: str, caller: Caller) -> pb.PolicyState:
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
    router: Router
    wire_by_url: dict[str, Wire]
    stack: AsyncExitStack

    async def start_replica(self, number: int) -> tuple[str, FakeReplica]:
        """One that the router does not know yet."""
        replica = FakeReplica(number)
        replica.open_gate.set()
        url = f"http://{number - 1}"
        self.wire_by_url[url] = Wire(await self.stack.enter_async_context(serving(replica)))
        return url, replica

    async def join(self, url: str) -> httpx.Response:
        return await self.http.post(paths.REPLICAS, content=pb.AddReplicaRequest(url=url).SerializeToString())

    async def listed(self) -> dict[str, str]:
        answer = pb.ListReplicasResponse.FromString((await self.http.get(paths.REPLICAS)).content)
        return {replica.url: replica.state for replica in answer.replicas}

    async def sample(self, message: pb.SampleRequest | None = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = (message or request()).SerializeToString()
        return await self.http.post(paths.SAMPLE, content=body, headers=named)

    async def number(self, message: pb.SampleRequest | None = None, **headers: str) -> int:
        """Which replica answered."""
        response = await self.sample(message, **headers)
        assert response.status_code == 200, response.text
        return pb.SampleResponse.FromString(response.content).prompt_cache_hit_tokens


def request(*, prompt: Sequence[int] = (1, 2), **fields: object) -> pb.SampleRequest:
    return pb.SampleRequest(prompt=model_input_to_proto([*prompt]), num_samples=1, run_id="r", **fields)


@asynccontextmanager
async def serving(replica: FakeReplica) -> AsyncIterator[httpx.AsyncBaseTransport]:
    async with Submissions(max_pending=50) as submissions:
        yield httpx.ASGITransport(make_sampler_app(replica, submissions, keys=KeyRing.of(KEY)))


@pytest_asyncio.fixture
async def fleet(until: Until) -> AsyncIterator[Fleet]:
    replicas = [FakeReplica(1), FakeReplica(2)]
    async with AsyncExitStack() as stack:
        wires = [Wire(await stack.enter_async_context(serving(replica))) for replica in replicas]
        wire_by_url = {f"http://{i}": wire for i, wire in enumerate(wires)}
        router = Router(list(wire_by_url), make_link=lambda url: ReplicaLink(url, key=KEY, transport=wire_by_url[url]))
        submissions = await stack.enter_async_context(Submissions(max_pending=50))
        await stack.enter_async_context(router.running())
        links = list(router.members)
        routes = replica_routes(router.members)
        app = make_sampler_app(router, submissions, keys=KeyRing.of(KEY), more_routes=routes)
        headers = {"Authorization": f"Bearer {KEY}", "Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF}
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router", headers=headers)
        )
        await until(lambda: all(link.is_healthy for link in links))
        for replica in replicas:
            replica.open_gate.set()
        yield Fleet(http, replicas, wires, links, router, wire_by_url, stack)


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
    fleet.replicas[1].publish(3, 4)
    await until(lambda: "r" in fleet.links[1].policies)
    for _ in range(4):
        assert await fleet.number(X_Min_Policy_Version="4") == 2
        assert await fleet.number(X_Policy_Version="3") == 2
    assert fleet.replicas[1].seen[-2][1] == AtLeast(4)
    assert fleet.replicas[0].seen == []


async def test_a_gate_that_none_satisfies_is_a_425_with_both_versions(fleet: Fleet, until: Until) -> None:
    fleet.replicas[1].publish(3, 4)
    await until(lambda: "r" in fleet.links[1].policies)
    response = await fleet.sample(request(gate_wait_s=0.05), X_Min_Policy_Version="9")
    assert response.status_code == 425
    error = common_pb2.Error.FromString(response.content)
    assert (error.wanted_version, error.newest_version) == (9, 4)
    assert not any(replica.seen for replica in fleet.replicas)
    assert response.headers["Retry-After"] == "1"


async def test_waiting_for_a_policy_ends_with_the_first_replica_that_has_it(fleet: Fleet) -> None:
    fleet.replicas[1].publish(1)
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


async def test_a_sample_that_nobody_was_left_for_is_done_when_it_is_submitted_again(fleet: Fleet, until: Until) -> None:
    for replica in fleet.replicas:
        replica.open_gate.clear()
    body, headers = request().SerializeToString(), {paths.CLIENT_ID: "me"}

    async def submit() -> None:
        assert (await fleet.http.post(f"{paths.SAMPLES}?key=k", content=body, headers=headers)).status_code == 202

    async def outcome() -> operations_pb2.Operation:
        poll = operations_pb2.PollRequest(client_id="me", wait_s=20).SerializeToString()
        answer = operations_pb2.PollResponse.FromString((await fleet.http.post(paths.POLL, content=poll)).content)
        return answer.finished[0]

    await submit()
    await until(lambda: any(replica.seen for replica in fleet.replicas))
    for wire in fleet.wires:
        wire.is_cut = True
    assert (await outcome()).error.status == 503
    for wire, replica in zip(fleet.wires, fleet.replicas, strict=True):
        wire.is_cut = False
        replica.open_gate.set()
    await until(lambda: all(link.is_healthy for link in fleet.links))
    await submit()
    assert (await outcome()).sample.prompt_cache_hit_tokens in (1, 2)


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
    fleet.replicas[0].publish(1, 2)
    fleet.replicas[1].publish(2, 3)
    await until(lambda: all("r" in link.policies for link in fleet.links))
    (state,) = pb.ListPoliciesResponse.FromString((await fleet.http.get(paths.POLICIES)).content).policies
    assert (state.newest_version, list(state.resident_versions)) == (3, [1, 2, 3])
    path = "bt://loops:r/sampler_weights/x"
    body = pb.LoadPolicyRequest(model_path=path).SerializeToString()
    loaded = await fleet.http.post(paths.LOAD_POLICY, content=body)
    assert pb.PolicyState.FromString(loaded.content).model_path == path


async def test_a_request_waits_at_the_router_for_its_version(fleet: Fleet) -> None:
    waiting = [asyncio.create_task(fleet.number(X_Min_Policy_Version="2")) for _ in range(3)]
    exact = asyncio.create_task(fleet.number(X_Policy_Version="2"))
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in (*waiting, exact))
    fleet.replicas[1].publish(2)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting, exact) == [2, 2, 2, 2]


async def test_a_joining_replica_without_the_policy_does_not_answer_with_the_base_model(
    fleet: Fleet, until: Until
) -> None:
    fleet.replicas[1].publish(1)
    await until(lambda: "r" in fleet.links[1].policies)
    assert [await fleet.number() for _ in range(4)] == [2, 2, 2, 2]


async def test_the_router_draws_the_seed_that_a_request_leaves_open(fleet: Fleet, until: Until) -> None:
    for replica in fleet.replicas:
        replica.open_gate.clear()
    waiting = asyncio.create_task(fleet.number())
    await until(lambda: bool(fleet.replicas[0].seen))
    fleet.wires[0].is_cut = True
    fleet.replicas[1].open_gate.set()
    assert await waiting == 2
    first, second = fleet.replicas[0].seen[0][0], fleet.replicas[1].seen[0][0]
    assert first.params.HasField("seed")
    assert first.params.seed == second.params.seed
    given = request(params=pb.SamplingParams(seed=5))
    await fleet.number(given)
    assert fleet.replicas[1].seen[-1][0].params.seed == 5


async def test_the_beginning_of_a_prompt_stays_with_its_replica(fleet: Fleet, until: Until) -> None:
    first = request(prompt=[7] * 40)
    fleet.replicas[0].open_gate.clear()
    held = asyncio.create_task(fleet.number(request(prompt=[8] * 3)))
    await until(lambda: bool(fleet.replicas[0].seen))
    assert await fleet.number(first) == 2  # the less busy one
    fleet.replicas[0].open_gate.set()
    await held
    assert [await fleet.number(request(prompt=[7] * 33 + [9])) for _ in range(3)] == [2, 2, 2]
    assert await fleet.number(request(prompt=[7] * 8 + [9] * 30)) == 1


async def test_replicas_join_and_leave_while_requests_are_in_flight(fleet: Fleet, until: Until) -> None:
    url, third = await fleet.start_replica(3)
    assert (await fleet.join(url)).status_code == 200
    await until(lambda: len(fleet.links) < len(list(fleet.router.members)))
    await until(lambda: all(link.is_healthy for link in fleet.router.members))
    fleet.replicas[0].open_gate.clear()
    in_flight = asyncio.create_task(fleet.number())
    await until(lambda: fleet.links[0].num_in_flight == 1)
    assert (await fleet.http.delete(f"{paths.REPLICAS}?url=http://0")).status_code == 200
    assert await fleet.listed() == {"http://0": "leaving", "http://1": "serving", url: "serving"}
    for number in range(6):
        assert await fleet.number(request(affinity_key=str(number))) in (2, 3)
    assert third.seen
    assert not in_flight.done()
    fleet.replicas[0].open_gate.set()
    assert await in_flight == 1
    await until(lambda: len(fleet.router.members) == 2)
    assert await fleet.listed() == {"http://1": "serving", url: "serving"}


async def test_a_draining_replica_gets_nothing_new(fleet: Fleet, until: Until) -> None:
    fleet.replicas[0].drain()
    assert [await fleet.number() for _ in range(4)] == [2, 2, 2, 2]  # whether or not the router has heard of it
    await until(lambda: fleet.links[0].is_draining)
    assert (await fleet.listed())["http://0"] == "draining"
    assert fleet.replicas[0].seen == []


@pytest.mark.parametrize(
    "url", ["", "ftp://x", "http://", "http://a:b/", "http://u:p@x", "http://x/path", "http://x:0", "http://["]
)
async def test_a_replicas_address_is_checked(fleet: Fleet, url: str) -> None:
    response = await fleet.join(url)
    assert response.status_code == 400
    assert common_pb2.Error.FromString(response.content).field == "url"
    assert (await fleet.http.delete(f"{paths.REPLICAS}?url=http://9")).status_code == 404


async def test_only_whoever_has_the_key_changes_the_fleet(fleet: Fleet) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = await fleet.http.request(method, paths.REPLICAS, headers={"Authorization": "Bearer no"})
        assert response.status_code == 401


async def test_a_router_that_drains_finishes_what_it_has(fleet: Fleet, until: Until) -> None:
    fleet.replicas[0].open_gate.clear()
    in_flight = asyncio.create_task(fleet.number())
    waiting = asyncio.create_task(fleet.sample(X_Min_Policy_Version="3"))
    await until(lambda: fleet.links[0].num_in_flight == 1)
    await fleet.http.post(paths.DRAIN)
    assert (await waiting).status_code == 503
    assert (await fleet.sample()).status_code == 503
    fleet.replicas[0].open_gate.set()
    assert await in_flight == 1
