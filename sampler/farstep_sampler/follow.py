"""A job in flight that goes on with newer weights of its run as they come: `in_flight="switch"`.

The new version is pinned before the engine is told, and the old one is let go only when nothing uses it any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from farstep_sampler.gate import Gate, Pin
from farstep_sampler.in_flight import Sampling
from farstep_sampler.request import Target
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import BASE, AtLeast, Serve


async def follow(sampling: Sampling, pin: Pin, *, target: Target, table: VersionTable, gate: Gate) -> None:
    """Returns when the job is done; `pin` holds the version that it is on.

    A job that began with the base model, before its run had a policy, goes on with the run's first.
    """
    done = asyncio.ensure_future(sampling.wait())
    try:
        while not done.done():
            match table.decide(gate.seen(target), AtLeast(pin.policy.version + 1)):
                case Serve() as newer if pin.policy in (BASE, replace(newer.policy, version=pin.policy.version)):
                    with gate.pinned(newer.policy):  # both, until the engine has switched
                        await sampling.switch(slot=newer.slot, version=newer.policy.version)
                        pin.move(newer.policy)
                case _:
                    changed = asyncio.ensure_future(gate.changed())
                    await asyncio.wait((done, changed), return_when=asyncio.FIRST_COMPLETED)
                    changed.cancel()
    finally:
        done.cancel()
