"""Samples on their way to rewards: each is scored as soon as it is there, while others are still sampled."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from farstep.rollout.results import RolloutSample
from farstep.rollout.rewards import Reward, Score, described, finite, raise_for
from farstep.rollout.settings import OnRewardError, Progress

log = logging.getLogger("farstep")


class Scoring:
    """Args:
    reward: None: nobody scores, unless an agent gave the reward itself.
    room: how many rewards are computed at a time.
    timeout_s: for one of them.
    on_error: "drop": samples without a finite reward are failed ones.
    moved: called with how far it is, at each sample and each reward.
    """

    def __init__(
        self,
        reward: Reward | None,
        threads: Executor,
        *,
        total: int,
        room: int,
        timeout_s: float | None = None,
        on_error: OnRewardError = "raise",
        moved: Callable[[Progress], object],
    ) -> None:
        self._reward = reward
        self._threads = threads
        self._room = asyncio.Semaphore(room)
        self._timeout_s = timeout_s
        self._on_error: OnRewardError = on_error
        self._failures: dict[tuple[int, int], Exception] = {}
        self._moved = moved
        self._total = total
        self._samples: dict[tuple[int, int], RolloutSample] = {}
        self._tasks: dict[tuple[int, int], asyncio.Task[Score]] = {}
        self._num_scored = 0
        self.began_at: float | None = None
        self.sampled_at = time.monotonic()

    def add(self, sample: RolloutSample) -> None:
        """Takes a sample that has ended; returns at once."""
        place = sample.item.place
        self._samples[place] = sample
        self.sampled_at = time.monotonic()
        if sample.reward is not None:
            self._take_given(sample, sample.reward)
        elif self._reward is not None and sample.outcome == "ok" and sample.record is not None:
            self.began_at = self.began_at or time.monotonic()
            self._tasks[place] = asyncio.create_task(self._score(sample))
        self._tell()

    async def finish(self) -> list[RolloutSample]:
        """All samples with their rewards, in order of their places.

        Raises:
            RewardError: some have none; it names them.
        """
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for place, task in self._tasks.items():
            error = task.exception()
            if error is None:
                score = task.result()
                self._samples[place] = replace(self._samples[place], reward=score.value, reward_parts=score.parts)
            elif isinstance(error, Exception):
                self._failures[place] = error
            else:
                raise error
        if self._failures:
            self._settle_failures()
        return [self._samples[place] for place in sorted(self._samples)]

    def _take_given(self, sample: RolloutSample, reward: float) -> None:
        """The reward that an agent gave."""
        try:
            self._samples[sample.item.place] = replace(sample, reward=finite(reward))
            self._num_scored += 1
        except ValueError as error:
            self._failures[sample.item.place] = error

    def _settle_failures(self) -> None:
        if self._on_error == "raise":
            raise_for(self._failures)
        log.warning("%s; they are left out", described(self._failures))
        for place, error in self._failures.items():
            about: dict[str, Any] = {"outcome": "failed", "reason": "reward", "reward": None, "error": error}
            self._samples[place] = replace(self._samples[place], **about)

    async def abandon(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def waiting(self) -> list[str]:
        places = [place for place, task in self._tasks.items() if not task.done()]
        return [f"prompt {prompt}, sample {sample}: its reward" for prompt, sample in places]

    async def _score(self, sample: RolloutSample) -> Score:
        assert self._reward is not None
        assert sample.record is not None
        async with self._room:
            try:
                async with asyncio.timeout(self._timeout_s) as limit:
                    value = await self._reward.score(sample.record, self._threads)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise TimeoutError(f"it took more than {self._timeout_s:g} s") from error
        self._num_scored += 1
        self._tell()
        return value

    def _tell(self) -> None:
        self._moved(Progress(self._total, len(self._samples), self._num_scored))
