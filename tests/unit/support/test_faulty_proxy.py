"""The proxy itself: each fault does to an exchange what its name says, and no more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.network_faults import Fault, FaultPlan
from tests.unit.client.fake_server import Host

BODY = b"x" * 100_000


class Echo:
    """Answers with what it got; remembers every body that it got whole, and how many it got in part."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.num_cut = 0
        routes = [Route("/echo", self.echo, methods=["POST"]), Route("/stream", self.stream)]
        self.app = Starlette(routes=routes)

    async def echo(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            self.num_cut += 1
            return Response()
        self.bodies.append(body)
        return Response(body)

    async def stream(self, request: Request) -> Response:
        async def chunks():  # type: ignore[no-untyped-def]
            for _ in range(3):
                yield b"chunk"
                await asyncio.sleep(0.01)

        return StreamingResponse(chunks())


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.stop()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def proxy(host: Host, echo: Echo) -> Iterator[FaultyProxy]:
    with faulty_proxy(host.serve(echo.app), delay_s=0.1, hole_s=0.2) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultyProxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy.url, timeout=10) as client:
        yield client


def post(client: httpx.Client, body: bytes = BODY) -> bytes:
    return client.post("/echo", content=body).raise_for_status().content


def test_it_passes_on_what_comes(client: httpx.Client, proxy: FaultyProxy, echo: Echo) -> None:
    assert [post(client), post(client, b""), post(client, b"abc")] == [BODY, b"", b"abc"]
    assert client.get("/stream").content == b"chunkchunkchunk"
    assert echo.bodies == [BODY, b"", b"abc"]
    assert [each.fault for each in proxy.exchanges] == [Fault.NONE] * 4


@pytest.mark.parametrize(
    ("fault", "num_delivered", "num_cut"),
    [
        (Fault.DROP_RESPONSE, 1, 0),
        (Fault.CUT_RESPONSE, 1, 0),
        (Fault.CUT_REQUEST, 0, 1),
        (Fault.BLACK_HOLE, 0, 0),
        (Fault.RESET, 0, 0),
    ],
)
def test_an_exchange_that_fails(
    client: httpx.Client, proxy: FaultyProxy, echo: Echo, fault: Fault, num_delivered: int, num_cut: int
) -> None:
    proxy.plan.next_one("/echo", fault)
    with pytest.raises(httpx.TransportError):
        post(client)
    until(lambda: echo.num_cut == num_cut)
    assert echo.bodies == [BODY] * num_delivered
    assert post(client, b"next") == b"next"


@pytest.mark.parametrize(
    ("fault", "num_delivered"), [(Fault.DUPLICATE, 2), (Fault.LATE_DUPLICATE, 2), (Fault.DELAY, 1)]
)
def test_an_exchange_that_works_all_the_same(
    client: httpx.Client, proxy: FaultyProxy, echo: Echo, fault: Fault, num_delivered: int
) -> None:
    proxy.plan.next_one("/echo", fault)
    assert post(client) == BODY
    until(lambda: len(echo.bodies) == num_delivered)
    assert post(client, b"next") == b"next"
    assert echo.bodies == [BODY] * num_delivered + [b"next"]


def test_refused_connections(client: httpx.Client, proxy: FaultyProxy) -> None:
    post(client)
    proxy.refuse()
    with pytest.raises(httpx.TransportError):
        post(client)  # on the connection that was open
    with pytest.raises(httpx.ConnectError):
        post(client)
    proxy.accept()
    assert post(client) == BODY


def test_silence_swallows_and_ends(client: httpx.Client, proxy: FaultyProxy, echo: Echo) -> None:
    proxy.silence()
    with pytest.raises(httpx.ReadTimeout):
        client.post("/echo", content=BODY, timeout=0.3)
    proxy.silence(False)
    assert post(client) == BODY
    assert echo.bodies == [BODY]


def test_all_connections_can_be_cut_at_once(proxy: FaultyProxy) -> None:
    proxy.plan.next_one("/echo", Fault.BLACK_HOLE)
    errors: list[Exception] = []

    def hang() -> None:
        try:
            httpx.post(f"{proxy.url}/echo", content=BODY, timeout=20, trust_env=False)
        except httpx.TransportError as error:
            errors.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    until(lambda: proxy.exchanges)
    proxy.cut_all()
    thread.join(10)
    assert len(errors) == 1


def test_a_server_that_is_gone_ends_the_connection(client: httpx.Client, proxy: FaultyProxy) -> None:
    proxy.upstream = "http://127.0.0.1:9"
    with pytest.raises(httpx.TransportError):
        post(client)


def test_before_all_servers_at_once(host: Host, echo: Echo) -> None:
    """As a client's proxy: requests name their server, and go there."""
    url = host.serve(echo.app)
    with faulty_proxy("") as proxy, httpx.Client(proxy=proxy.url, timeout=10) as client:
        assert client.post(f"{url}/echo?a=b", content=BODY).content == BODY
        proxy.plan.next_one("/echo", Fault.DROP_RESPONSE)
        with pytest.raises(httpx.TransportError):
            client.post(f"{url}/echo", content=b"lost")
    assert echo.bodies == [BODY, b"lost"]


def test_the_same_seed_draws_the_same_faults() -> None:
    def row(seed: int) -> list[Fault]:
        plan = FaultPlan.everything(0.5, seed=seed)
        return [plan.draw("GET", "/") for _ in range(200)]

    assert row(1) == row(1) != row(2)
    assert set(row(1)) == set(Fault)


def test_a_plan_ends_where_it_is_told() -> None:
    plan = FaultPlan({Fault.RESET: 1.0}, most=2, applies=lambda method, path: path == "/a")
    assert [plan.draw("GET", path) for path in ("/b", "/a", "/a", "/a")] == [
        Fault.NONE, Fault.RESET, Fault.RESET, Fault.NONE,
    ]  # fmt: skip
    assert plan.num_faults == 2


def until(is_so) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)
