"""A server process announces itself, frees parked requests when told to stop, and ends with its parent."""

import json
import os
import signal
import subprocess
import sys
import threading

import httpx
import pytest

SERVER = """
import asyncio, sys
from starlette.responses import Response
from starlette.routing import Route
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing
from farstep_serving.process import announce, bind, exit_with_parent, serve, url_of

async def main():
    stopping = asyncio.Event()
    async def park(request):
        print("parked", flush=True)
        await stopping.wait()
        return Response("freed")
    sock = bind("127.0.0.1", 0)
    app = make_app([Route("/park", park)], keys=KeyRing.of())
    await serve(app, sock, on_ready=lambda: announce(url=url_of(sock)), on_stop=stopping.set)

exit_with_parent()
asyncio.run(main())
"""


@pytest.fixture
def server():
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    url = json.loads(process.stdout.readline())["url"]
    yield process, url
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_frees_parked_requests(server, how):
    process, url = server
    answers = []
    parked = threading.Thread(target=lambda: answers.append(httpx.get(f"{url}/park", timeout=20).text))
    parked.start()
    assert process.stdout.readline() == b"parked\n"
    os.kill(process.pid, how)
    process.wait(timeout=20)
    parked.join()
    assert answers == ["freed"]


def test_it_ends_with_its_parent(server):
    process, _ = server
    process.stdin.close()  # what the end of a parent looks like
    process.wait(timeout=20)
