"""A server process that keeps the launcher's side of the contract and does nothing else.

The name of its base model says how it behaves: `fake/fails` ends before it is ready, `fake/hangs` never is, and
`fake/cursed` as well where there is a file `cursed` in its store.
`GET /asked` tells what it was started with; `GET /work?n=` has it say that so many operations are pending.
`POST /use` has it count tokens of a run.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from pathlib import Path

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.errors import Draining
from farstep_proto.v1 import common_pb2, control_pb2, sampling_pb2, training_pb2
from farstep_serving.app import make_app
from farstep_serving.keys import KeyRing
from farstep_serving.messages import read_message, respond
from farstep_serving.process import announce, bind, exit_with_parent, serve, url_of


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--custom-losses", action="store_true")
    for name in (
        "model",
        "store",
        "device",
        "feed",
        "feed-port",
        "model-path",
        "nproc",
        "journal",
        "weight-sync-uri",
        "tool-call-parser",
    ):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--replica", action="append", default=[])
    parser.add_argument("--served-name", action="append", default=[])
    return parser.parse_args()


def main(role: str) -> None:
    arguments = parse()
    print(f"{role} says something before it is ready")
    if arguments.exit_with_parent:
        exit_with_parent()
    if arguments.model == "fake/cursed" and Path(arguments.store, "cursed").exists():
        sys.exit("a curse lies on it")
    if arguments.model == "fake/fails":
        print(f"{role}: there is no model fake/fails", file=sys.stderr)
        sys.exit(3)
    while arguments.model == "fake/hangs":
        time.sleep(60)
    asyncio.run(run(role, arguments))


async def run(role: str, arguments: argparse.Namespace) -> None:
    info = training_pb2.ServerInfo(
        role=role,
        base_model=arguments.model,
        device="cpu",
        max_seq_len=512,
        max_request_bytes=1 << 20,
        loss_fns=["cross_entropy"],
        engine="torch" if role == "sampler" else "",
    )

    async def health(request):
        return respond(request, common_pb2.Empty())

    num_asked = itertools.count()
    idle_since = time.monotonic()

    async def work(request):
        nonlocal idle_since
        info.num_pending = int(request.query_params["n"])
        idle_since = time.monotonic()
        return respond(request, common_pb2.Empty())

    async def get_info(request):
        if role == "router" and next(num_asked) < 2:
            raise Draining("it has not met its replicas yet")
        info.idle_s = 0.0 if info.num_pending else time.monotonic() - idle_since
        return respond(request, info)

    async def asked(request):
        names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
        facts = {
            "deleted": deleted,
            "argv": sys.argv[1:],
            "env": {name: os.environ[name] for name in names},
            **vars(arguments),
        }
        return PlainTextResponse(json.dumps(facts))

    deleted: list[str] = []

    async def delete_run(request):
        deleted.append(request.path_params["run_id"])
        return respond(request, common_pb2.Empty())

    async def die(request) -> Response:
        print(f"{role} was told to die", file=sys.stderr, flush=True)
        os._exit(7)

    async def add_replica(request):
        arguments.replica.append((await read_message(request, sampling_pb2.AddReplicaRequest)).url)
        return respond(request, common_pb2.Empty())

    routes = [
        Route(paths.HEALTH, health),
        Route(paths.INFO, get_info),
        Route("/asked", asked),
        Route("/die", die),
        Route("/work", work),
    ]
    if role == "router":
        routes.append(Route(paths.REPLICAS, add_replica, methods=["POST"]))
    else:
        routes += usage_routes("tokens_trained" if role == "trainer" else "tokens_sampled")
    routes.append(Route(paths.RUN, delete_run, methods=["DELETE"]))
    sock = bind(arguments.host, arguments.port)
    facts = {"feed": f"{arguments.host}:{arguments.feed_port or 4242}"} if role == "trainer" else {}
    app = make_app(routes, keys=KeyRing.of(os.environ["FARSTEP_API_KEY"]))
    await serve(app, sock, on_ready=lambda: announce(url=url_of(sock), pid=os.getpid(), **facts))


def usage_routes(counter: str) -> list[Route]:
    used = control_pb2.ServerUsage(instance_id=f"{counter}-{os.getpid()}")

    async def use(request):
        totals = used.usage.add(project=request.query_params["project"], run_id=request.query_params["run_id"])
        setattr(totals, counter, int(request.query_params["tokens"]))
        return respond(request, used)

    async def usage(request):
        return respond(request, used)

    return [Route("/use", use, methods=["POST"]), Route(paths.USAGE, usage)]
