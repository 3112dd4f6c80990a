"""The router process: command line and environment in, a server out."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence

from farstep_proto.errors import InvalidInput
from farstep_sampler.openai_api.settings import add_openai_flags, take_openai_flags
from farstep_sampler.router.admin import replica_routes
from farstep_sampler.router.backend import Router
from farstep_sampler.router.link import ReplicaLink
from farstep_sampler.router.members import checked_url
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import DRAIN_S, Submissions
from farstep_serving.keys import KeyRing, Keys
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of
from farstep_serving.remote_keys import ControlAddress, all_keys


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is told to stop; FARSTEP_API_KEY is the key of the router and of its replicas."""
    parser = argparse.ArgumentParser(prog="farstep_sampler.router", description="One address for several replicas.")
    parser.add_argument(
        "--replica", action="append", default=[], type=_url, metavar="URL", help="once for each; more may join later"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--max-requests", type=int, default=16_384, help="most requests in flight")
    parser.add_argument("--drain-s", type=float, default=DRAIN_S, help="most time for what is in flight at the end")
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--log-level", default="INFO")
    add_openai_flags(parser)
    flags = parser.parse_args(arguments)
    setup_logging(flags.log_level)
    key = os.environ.get("FARSTEP_API_KEY")
    keys = KeyRing.of(key)
    keys.check_host(flags.host)
    if flags.exit_with_parent:
        exit_with_parent()
    asyncio.run(_serve(flags, key, keys, ControlAddress.of(os.environ)))


async def _serve(flags: argparse.Namespace, key: str | None, ring: KeyRing, control: ControlAddress | None) -> None:
    async with all_keys(ring, control) as keys:
        await _serve_with(flags, key, keys)


async def _serve_with(flags: argparse.Namespace, key: str | None, keys: Keys) -> None:
    router = Router(flags.replica, make_link=lambda url: ReplicaLink(url, key=key))
    submissions = Submissions(max_pending=flags.max_requests)
    app = make_sampler_app(
        router,
        submissions,
        keys=keys,
        more_routes=replica_routes(router.members),
        openai=take_openai_flags(flags),
    )
    sock = bind(flags.host, flags.port)

    async def drain() -> None:
        router.drain()
        await submissions.settled(flags.drain_s)

    async with router.running(), submissions:
        await serve(
            app,
            sock,
            on_ready=lambda: announce(url=url_of(sock), pid=os.getpid()),
            drain=drain,
            on_stop=submissions.table.drain,
        )


def _url(text: str) -> str:
    try:
        return checked_url(text)
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(error.message) from error


if __name__ == "__main__":
    main()
