"""A run of requests to one server, by several clients at once, and what the server holds before and after."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from farstep_proto import paths
from tests.fuzz.requests import Known, operations_of
from tests.fuzz.vitals import Vitals, settled_vitals_of
from tests.fuzz.worker import Findings, Worker

CLIENTS = 6


@dataclass(frozen=True)
class Target:
    """A server under fire. `ids` are names that exist there, by path parameter; `left_out` routes are left alone."""

    name: str
    url: str
    pid: int
    key: str
    ids: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Report:
    findings: Findings
    before: Vitals
    after: Vitals

    @property
    def leaked_mib(self) -> float:
        return self.after.rss_mib - self.before.rss_mib


async def attack(target: Target, *, num_requests: int, seed: int, warm_up: int) -> Report:
    """Sends `warm_up` requests, whose traces in memory are not counted, then `num_requests`."""
    findings = Findings()
    async with httpx.AsyncClient(base_url=target.url, timeout=60) as http:
        document = (await http.get(paths.OPENAPI)).json()
    operations = operations_of(document)

    async def round_of(count: int, part: int) -> None:
        limits = httpx.Limits(max_connections=2 * CLIENTS)
        async with httpx.AsyncClient(base_url=target.url, timeout=60, limits=limits, trust_env=False) as http:
            workers = [
                Worker(
                    http,
                    document,
                    operations,
                    known=Known(
                        target.key,
                        {name: list(ids) for name, ids in target.ids.items()},
                        client_id=f"fuzz-{seed}-{part}-{index}",
                    ),
                    rng=random.Random(f"{seed}/{target.name}/{part}/{index}"),
                    findings=findings,
                )
                for index in range(CLIENTS)
            ]
            await asyncio.gather(*(worker.work(count // CLIENTS) for worker in workers))

    await round_of(warm_up, 0)
    before = settled_vitals_of(target.pid)
    await round_of(num_requests, 1)
    return Report(findings, before, settled_vitals_of(target.pid, at_most=before))
