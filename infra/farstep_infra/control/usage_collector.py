"""What servers have used, asked of them again and again and handed to the ledger.

A server tells totals since it began, and the ledger adds what they have grown by. So a question may be lost, late or
asked twice. What a server counts between the last answer and its end is lost with it, if nobody could ask before:
at most what it does in `EVERY_S` seconds where it was killed, and what it ends while it stops where it was not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import httpx
from google.protobuf.message import DecodeError

from farstep_infra.control.usage import UsageLedger
from farstep_proto import paths
from farstep_proto.errors import ApiError
from farstep_proto.v1 import control_pb2

log = logging.getLogger(__name__)

EVERY_S = 15.0
ANSWER_S = 5.0


class UsageCollector:
    """Args:
    client: carries the key of the servers.
    urls: of the trainers and samplers that run now; routers count nothing.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        ledger: UsageLedger,
        urls: Callable[[], Iterable[str]],
        *,
        every_s: float = EVERY_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._urls = urls
        self._every_s = every_s
        self._answer_s = answer_s
        self._silent: set[str] = set()  # said so once

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.collect(self._urls())

    async def collect(self, urls: Iterable[str]) -> None:
        """Asks these servers, all at once; returns, and never raises, when each has answered or had its time."""
        asked = set(urls)
        await asyncio.gather(*(self._collect(url) for url in asked))

    async def _collect(self, url: str) -> None:
        try:
            answer = await self._ask(url)
            await self._ledger.add(answer.instance_id, answer.usage)
        except (httpx.HTTPError, TimeoutError, DecodeError, ApiError) as error:
            if url not in self._silent:
                log.warning("what %s has used is not known just now; it is asked again: %r", url, error)
            self._silent.add(url)
        else:
            self._silent.discard(url)

    async def _ask(self, url: str) -> control_pb2.ServerUsage:
        # One bound for all of it: httpx's own begins anew with every byte.
        async with asyncio.timeout(self._answer_s):
            response = await self._client.get(url + paths.USAGE)
        response.raise_for_status()
        return control_pb2.ServerUsage.FromString(response.content)
