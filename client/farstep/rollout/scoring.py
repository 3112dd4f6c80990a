"""Samples on their way to rewards: each is scored as soon as it is there, while others are still sampled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from farstep.rollout.results import RolloutSample
from farstep.rollout.rewards import Reward, raise_for
from farstep.rollout.settings import Progress


class Scoring:
    """Args:
    reward: None: nobody scores, unless an agent gave the reward itself.
    room: how many rewards are computed at a time.
    moved: called with how far it is, at each sample and each reward.
    """

    def __init__(
        self,
        reward: Reward | None,
        threads: Executor,
        *,
        total: int,
        room: int,
        moved: Callable[[Progress], object],
    ) -> None:
        self._reward = reward
        self._threads = threads
        self._room = asyncio.Semaphore(room)
        self._moved = moved
        self._total = total
        self._samples: dict[tuple[int, int], RolloutSample] = {}
        self._tasks: dict[tuple[int, int], asyncio.Task[float]] = {}
        self._num_scored = 0
        self.began_at: float | None = None
        self.sampled_at = time.monotonic()

    def add(self, sample: RolloutSample) -> None:
        """Takes a sample that has ended; returns at once."""
        self._samples[sample.item.place] = sample
        self.sampled_at = time.monotonic()
        if self._reward is not None and sample.reward is None and sample.outcome == "ok" and sample.record is not None:
            self.began_at = self.began_at or time.monotonic()
            self._tasks[sample.item.place] = asyncio.create_task(self._score(sample))
        elif sample.reward is not None:
            self._num_scored += 1
        self._tell()

    async def finish(self) -> list[RolloutSample]:
        """All samples with their rewards, in order of their places.

        Raises:
            RewardError: some have none; it names them.
        """
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        failures: dict[tuple[int, int], Exception] = {}
        for place, task in self._tasks.items():
            error = task.exception()
            if error is None:
                self._samples[place] = replace(self._samples[place], reward=task.result())
            elif isinstance(error, Exception):
                failures[place] = error
            else:
                raise error
        raise_for(failures)
        return [self._samples[place] for place in sorted(self._samples)]

    async def abandon(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def waiting(self) -> list[str]:
        places = [place for place, task in self._tasks.items() if not task.done()]
        return [f"prompt {prompt}, sample {sample}: its reward" for prompt, sample in places]

    async def _score(self, sample: RolloutSample) -> float:
        assert self._reward is not None
        assert sample.record is not None
        async with self._room:
            value = await self._reward(sample.record, self._threads)
        self._num_scored += 1
        self._tell()
        return value

    def _tell(self) -> None:
        self._moved(Progress(self._total, len(self._samples), self._num_scored))
