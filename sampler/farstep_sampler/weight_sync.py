"""The weight-sync URI, as a replica reads it: now and then, the manifest of each run, and what is new in it.

It takes the place of the feed where trainer and samplers share nothing but a directory or a bucket. A policy whose
sha256 is another than its manifest says is never handed on; it is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_proto.errors import ApiError, NotFound
from farstep_sampler.recall import PolicyFiles
from farstep_sampler.versions import PolicyId

log = logging.getLogger(__name__)

_JITTER = random.Random()  # its own: what a program draws from `random` must not depend on our retries

DEFAULT_INTERVAL_S = 1.0
_LAST_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """Where to look, and how often on average."""

    shelves: PolicyShelves
    interval_s: float = DEFAULT_INTERVAL_S


class WeightSyncPoller:
    """Args:
    deliver: takes each new policy.
    interval_s: between two looks, on average.
    """

    def __init__(
        self,
        shelves: PolicyShelves,
        *,
        deliver: Callable[[PolicyId, PolicyFiles], None],
        interval_s: float = DEFAULT_INTERVAL_S,
    ) -> None:
        self._shelves = shelves
        self._deliver = deliver
        self._interval_s = interval_s
        self._delivered: dict[str, PolicyId] = {}  # the last of each run

    async def run(self) -> None:
        """Looks for ever; the less often the longer nobody answers."""
        pause_s = self._interval_s
        while True:
            try:
                for run_id in await asyncio.to_thread(self._shelves.runs):
                    await self._look(run_id)
                pause_s = self._interval_s
            except ApiError as error:
                log.warning("weight sync: %s", error.message)
                pause_s = min(2 * pause_s, max(_LAST_RETRY_S, self._interval_s))
            await asyncio.sleep(pause_s * _JITTER.uniform(0.75, 1.25))

    async def _look(self, run_id: str) -> None:
        try:
            found = await asyncio.to_thread(self._news_of, run_id)
        except NotFound:  # it has just left
            return
        except ApiError as error:  # this run's alone: the others are looked at
            log.warning("weight sync, %s: %s", run_id, error.message)
            return
        if found is not None:
            policy = self._delivered[run_id] = PolicyId(run_id, found.version, found.history, found.project)
            self._deliver(policy, found.files)

    def _news_of(self, run_id: str) -> ShelvedPolicy | None:
        shelf = self._shelves.shelf(run_id)
        if PolicyId(run_id, shelf.newest.version, shelf.history) == self._delivered.get(run_id):
            return None
        return self._shelves.read(run_id, shelf.newest.version)
