"""Peers that hold connections, or feed them, or do not read: they end, and others are served meanwhile."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress

import httpx
import psutil
import pytest

SERVER = """
import asyncio
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from farstep_proto import paths
from farstep_proto.v1 import training_pb2
from farstep_serving.app import make_app
from farstep_serving.bodies import BodyLimits
from farstep_serving.connections import ConnectionLimits
from farstep_serving.keys import KeyRing
from farstep_serving.messages import read_message, respond
from farstep_serving.process import announce, bind, exit_with_parent, serve, url_of

CONNECTIONS = ConnectionLimits(30, head_s=1, linger_s=1, stalled_s=2, max_unread_bytes=24 << 20)
BODIES = BodyLimits(idle_s=1, grace_s=2, min_bytes_per_s=1 << 20, max_bytes=4 << 20)

async def echo(request):
    return respond(request, await read_message(request, training_pb2.OptimStepRequest, limit=2 << 20))

async def large(request):
    return Response(bytes(int(request.query_params["mib"]) << 20))

async def endless(request):
    async def pieces():
        while True:
            await asyncio.sleep(0)
            yield bytes(1 << 20)
    return StreamingResponse(pieces())

async def main():
    sock = bind("127.0.0.1", 0)
    routes = [Route("/echo", echo, methods=["POST"]), Route("/large", large), Route("/endless", endless)]
    app = make_app(routes, keys=KeyRing.of(), body_limits=BODIES)
    await serve(app, sock, limits=CONNECTIONS, on_ready=lambda: announce(url=url_of(sock)))

exit_with_parent()
asyncio.run(main())
"""
POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    facts = json.loads(process.stdout.readline())
    yield process, facts["url"]
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def rest_of(peer: socket.socket) -> bytes:
    """Everything until the server closes; a reset ends it as well."""
    said = b""
    try:
        while data := peer.recv(1 << 16):
            said += data
    except ConnectionResetError:
        pass
    return said


def is_fine(url: str) -> bool:
    return httpx.post(f"{url}/echo", json={"eps": 1.0}, timeout=10).json() == {"eps": 1.0}


@pytest.mark.parametrize("said", [b"", b"\r\n\r\n", POST + b"content-le"])
def test_a_head_that_does_not_come_is_not_waited_for(server, said):
    with closing(connect(server[1])) as peer:
        peer.sendall(said)
        assert is_fine(server[1])
        rest_of(peer)  # it ends


def test_a_head_that_is_dribbled_is_not_waited_for_either(server):
    with closing(connect(server[1])) as peer:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"reset|pipe|abort"):
            dribble(peer, POST * 1000)
        assert 0.5 < time.monotonic() - started < 20
    assert is_fine(server[1])


def dribble(peer: socket.socket, data: bytes) -> None:
    for byte in data:
        peer.sendall(bytes([byte]))
        time.sleep(0.02)


@pytest.mark.parametrize(
    "flood",
    [
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 400_000,
        b"GET / HTTP/1.1\r\nx: " + b"y" * 3_000_000,
        b"GET /" + b"y" * 3_000_000,
        POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n" + b"x: y\r\n" * 400_000,
        POST + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 3_000_000,
        b"\r\n" * 1_500_000,
    ],
    ids=["headers", "header", "target", "trailers", "extension", "lines"],
)
def test_floods_of_what_is_no_body(server, flood):
    process, url = server
    assert is_fine(url)
    before = psutil.Process(process.pid).memory_info().rss
    with closing(connect(url)) as peer:
        sender = threading.Thread(target=send_what_it_takes, args=(peer, flood))
        sender.start()
        said = rest_of(peer)
        sender.join()
    assert said == b"" or said.split(b"\r\n")[0].split()[1] in (b"400", b"431")
    assert psutil.Process(process.pid).memory_info().rss - before < 16 << 20
    assert is_fine(url)


def send_what_it_takes(peer: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        peer.sendall(data)


def answer_to(url: str, *pieces: bytes, pause_s: float = 0) -> tuple[int, dict]:
    with closing(connect(url)) as peer:
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(pause_s)
        head, _, body = rest_of(peer).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_body_that_stops_coming(server):
    status, error = answer_to(server[1], POST + b"content-length: 1000\r\n\r\n", b"{")
    assert (status, error["error_class"], error["field"]) == (408, "BodyTimeoutError", "body")
    assert "1 bytes are here" in error["message"]


def test_a_body_that_is_dribbled(server):
    dribble = [b"1\r\n \r\n"] * 100
    with closing(connect(server[1])) as peer:
        peer.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        threading.Thread(target=lambda: [send_what_it_takes(peer, each) or time.sleep(0.1) for each in dribble]).start()
        assert peer.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    assert is_fine(server[1])


def test_many_small_pieces_are_a_body_like_any_other(server):
    body = b'{"eps": 1.0}' + b" " * 200_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    close = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert answer_to(server[1], close + chunks + b"0\r\n\r\n") == (200, {"eps": 1.0})


@pytest.mark.parametrize(
    "head", [b"content-length: 1000000000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\nfffffff\r\n"]
)
def test_what_is_too_large_is_refused_and_its_rest_not_taken(server, head):
    with closing(connect(server[1])) as peer:
        sender = threading.Thread(target=send_what_it_takes, args=(peer, POST + head + bytes(200 << 20)))
        sender.start()
        assert peer.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        rest_of(peer)
        sender.join()


def test_large_bodies_are_bounded_together_and_small_ones_get_through(server):
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect(server[1]))) for _ in range(4)]
        for peer in peers:
            peer.sendall(POST + b"content-length: 2000000\r\n\r\n" + b" " * 1_500_000)
        answers = [peer.recv(1 << 16).split(b"\r\n")[0] for peer in peers]
        assert is_fine(server[1])
    assert sorted({answer.split()[1] for answer in answers}) == [b"408", b"429"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate, br", "GZIP"])
def test_a_compressed_body_is_refused_by_name(server, encoding):
    response = httpx.post(f"{server[1]}/echo", content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
    assert response.status_code == 415
    assert encoding.lower() in response.json()["message"]


def test_who_does_not_read_an_answer_is_left(server):
    process, url = server
    with closing(connect(url)) as peer:
        peer.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.5)
        assert is_fine(url)
        deadline = time.monotonic() + 20
        while len(psutil.Process(process.pid).net_connections()) > 1:
            assert time.monotonic() < deadline, "it is still held"
            time.sleep(0.1)


def test_unread_answers_are_bounded_together(server):
    process, url = server
    before = psutil.Process(process.pid).memory_info().rss
    with ExitStack() as stack:
        for _ in range(12):
            peer = stack.enter_context(closing(connect(url)))
            peer.sendall(b"GET /large?mib=16 HTTP/1.1\r\nhost: x\r\n\r\n")
            assert peer.recv(1)
        assert psutil.Process(process.pid).memory_info().rss - before < 120 << 20
        assert is_fine(url)


def test_there_are_so_many_connections_at_most(server):
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(connect(server[1]))) for _ in range(40)]
        time.sleep(0.2)
        closed = 0
        for peer in peers:
            peer.settimeout(0.01)
            try:
                closed += peer.recv(1) == b""
            except ConnectionResetError:
                closed += 1
            except TimeoutError:
                pass
        assert 10 <= closed < 40
    deadline = time.monotonic() + 20
    while True:
        try:
            assert is_fine(server[1])
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


PIPELINED = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("said", "statuses"),
    [
        (PIPELINED * 2 + PIPELINED.replace(b"host", b"connection: close\r\nhost"), [b"200"] * 3),
        (PIPELINED * 3 + b"garbage\r\n\r\n", [b"400"]),
        (b"GET /nowhere HTTP/1.0\r\n\r\n", [b"404"]),
        (b"HEAD /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", [b"404"]),
        (b"OPTIONS /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", [b"405"]),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", [b"404"]),
        (b"BREW /echo HTTP/1.1\r\nhost: x\r\n\r\n", [b"400"]),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", [b"400"]),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx\x00y: z\r\n\r\n", [b"400"]),
        (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", [b"400"]),
        (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", [b"400"]),
        (POST + b"content-length: -2\r\n\r\n{}", [b"400"]),
        (POST + b"content-length: 99999999999999999999999\r\n\r\n{}", [b"400"]),
        (b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nxxxx", [b"404"]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [b"400"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [b"400"]),
    ],
)
def test_odd_requests(server, said, statuses):
    with closing(connect(server[1])) as peer:
        peer.sendall(said)
        answer = rest_of(peer)
    assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == statuses, answer
    assert is_fine(server[1])
