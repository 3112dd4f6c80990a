"""A job in flight that goes on with newer weights of its run as they come: `in_flight="switch"`.

The new version is pinned before the engine is told, and the old one is let go only when nothing uses it any more.
"""

from __future__ import annotations

import asyncio
import contextlib

from farstep_sampler.gate import Gate
from farstep_sampler.in_flight import Sampling
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import AtLeast, Serve


async def follow(
    sampling: Sampling, source: str, serve: Serve, table: VersionTable, gate: Gate, pins: contextlib.ExitStack
) -> None:
    """Returns when the job is done; `pins` holds the pin of the version that it is on, `serve` at first."""
    done = asyncio.ensure_future(sampling.wait())
    try:
        while not done.done():
            match table.decide(source, AtLeast(serve.policy.version + 1)):
                case Serve() as newer:
                    old = pins.pop_all()
                    pins.enter_context(gate.pinned(newer.policy))
                    with old:  # until the engine has switched
                        await sampling.switch(slot=newer.slot, version=newer.policy.version)
                    serve = newer
                case _:
                    changed = asyncio.ensure_future(gate.changed())
                    await asyncio.wait((done, changed), return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
    finally:
        done.cancel()
