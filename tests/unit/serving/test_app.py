"""The shell that all servers share: keys, bodies, errors, operations routes."""

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import TooManyRequests
from farstep_proto.v1 import common_pb2, operations_pb2, training_pb2
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing, make_key
from farstep_serving.messages import read_message, respond, wait_s_of
from farstep_serving.operation_routes import operation_routes
from farstep_serving.operations import OperationTable

BINARY = {"Content-Type": paths.PROTOBUF, "Accept": paths.PROTOBUF}


async def echo(request: Request) -> Response:
    return respond(request, await read_message(request, training_pb2.OptimStepRequest, limit=100))


async def busy(request: Request) -> Response:
    raise TooManyRequests("queue is full", retry_after_s=1.5)


async def broken(request: Request) -> Response:
    raise RuntimeError("secret detail")


async def wait(request: Request) -> Response:
    return Response(str(wait_s_of(request, most=60)))


ROUTES = [
    Route("/echo", echo, methods=["POST"]),
    Route("/busy", busy),
    Route("/broken", broken),
    Route("/wait", wait),
    Route(paths.HEALTH, lambda request: Response("ok")),
]


def client_of(*, keys=(), routes=(), headers=None):
    app = make_app([*ROUTES, *routes], keys=KeyRing.of(*keys))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


def error_of(response) -> dict:
    return response.json()


async def test_json_and_protobuf_say_the_same():
    async with client_of() as client:
        message = training_pb2.OptimStepRequest(learning_rate=0.5)
        binary = await client.post("/echo", content=message.SerializeToString(), headers=BINARY)
        assert training_pb2.OptimStepRequest.FromString(binary.content) == message
        text = await client.post("/echo", json={"learning_rate": 0.5})
        assert text.json() == {"learning_rate": 0.5}


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"{", "body"),
        (b'{"no_such_field": 1}', "body"),
        (b'{"learning_rate": "x"}', "learning_rate"),
        (b'{"learning_rate": "\\ud800"}', "learning_rate"),
        (b"\xff\xfe", "body"),
        (b"[" * 90, "body"),
    ],
)
async def test_malformed_json_is_a_400_that_names_the_place(content, field):
    async with client_of() as client:
        response = await client.post("/echo", content=content)
        assert response.status_code == 400
        assert error_of(response)["field"] == field


async def test_malformed_protobuf_is_a_400():
    async with client_of() as client:
        response = await client.post("/echo", content=b"\xff\xff\xff", headers=BINARY)
        assert common_pb2.Error.FromString(response.content).error_class == "ValidationError"
        assert response.status_code == 400


async def test_oversized_bodies_are_refused_declared_or_not():
    async def stream():
        for _ in range(20):
            yield b" " * 10

    async with client_of() as client:
        for content in (b" " * 200, stream()):
            response = await client.post("/echo", content=content)
            assert response.status_code == 413
            assert "100 bytes" in error_of(response)["message"]


async def test_retry_after_is_a_header_too():
    async with client_of() as client:
        response = await client.get("/busy")
        assert (response.status_code, response.headers["Retry-After"]) == (429, "2")
        assert error_of(response)["retry_after_s"] == 1.5


async def test_our_mistakes_tell_nothing_of_the_inside():
    async with client_of() as client:
        response = await client.get("/broken")
        assert response.status_code == 500
        assert "secret" not in response.text


async def test_unknown_routes_are_errors_like_all_others():
    async with client_of() as client:
        assert error_of(await client.get("/nowhere"))["error_class"] == "NotFoundError"
        assert (await client.get("/echo")).status_code == 405


@pytest.mark.parametrize("text", ["x", "-1", "nan"])
async def test_bad_waits(text):
    async with client_of() as client:
        assert error_of(await client.get("/wait", params={"wait_s": text}))["field"] == "wait_s"
        assert (await client.get("/wait", params={"wait_s": "1000"})).text == "60"


async def test_keys():
    key, other = make_key(), make_key()
    async with client_of(keys=[key, other]) as client:
        assert (await client.get("/health")).status_code == 200
        for header in ("", f"Bearer {make_key()}", f"Basic {key}", "Bearer", f"Bearer {key}x"):
            response = await client.get("/wait", headers={"Authorization": header})
            assert response.status_code == 401
            assert key not in response.text
        for good in (key, other):
            assert (await client.get("/wait", headers={"Authorization": f"Bearer {good}"})).status_code == 200


def test_an_open_server_stays_on_loopback():
    KeyRing.of(None).check_host("127.0.0.1")
    KeyRing.of("key").check_host("0.0.0.0")
    with pytest.raises(SystemExit, match="FARSTEP_API_KEY"):
        KeyRing.of(None, "").check_host("0.0.0.0")


async def test_operation_routes():
    table = OperationTable()
    dropped = []
    routes = operation_routes(table, cancel=lambda operation_id: not dropped.append(operation_id))
    for operation_id in ("r:1", "r:2"):
        table.open(operation_id, client_id="c", verb="forward", digest=b"")
    table.set_running("r:2")
    async with client_of(routes=routes) as client:
        assert (await client.get("/v1/operations/r:1")).json()["state"] == "OPERATION_STATE_QUEUED"
        assert (await client.get("/v1/operations/r:9")).status_code == 404
        assert (await client.post("/v1/operations/r:9/cancel")).status_code == 404
        assert (await client.post("/v1/operations/r:1/cancel")).json() == {"cancelled": True}
        assert (await client.post("/v1/operations/r:1/cancel")).json() == {}
        assert (await client.post("/v1/operations/r:2/cancel")).json() == {}
        assert dropped == ["r:1"]
        poll = operations_pb2.PollRequest(client_id="c", wait_s=5)
        answer = await client.post(paths.POLL, content=poll.SerializeToString(), headers=BINARY)
        finished = operations_pb2.PollResponse.FromString(answer.content).finished
        assert [operation.error.error_class for operation in finished] == ["CancelledError"]
        assert (await client.post(paths.POLL, json={})).status_code == 400
        for wait_s in ("NaN", -1.0):
            refused = await client.post(paths.POLL, json={"client_id": "c", "wait_s": wait_s})
            assert (refused.status_code, error_of(refused)["field"]) == (400, "wait_s")


async def test_a_connection_that_ends_in_mid_body_is_no_mistake_of_the_servers(caplog):
    came = iter([{"type": "http.request", "body": b"x" * 10, "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(came)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/echo", "query_string": b"", "headers": []}
    await make_app(ROUTES, keys=KeyRing.of())(scope, receive, send)
    assert sent[0]["status"] == 400
    assert b"10 bytes" in sent[1]["body"]
    assert not caplog.records
