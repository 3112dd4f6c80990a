"""One rollout from its items to its rows: bounded concurrency, rewards beside sampling, stalls told, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from farstep.errors import InvalidInputError
from farstep.rollout.agents import AgentItem
from farstep.rollout.assembling import Assembly, with_logprobs
from farstep.rollout.results import Rollout, RolloutSample
from farstep.rollout.rewards import Reward
from farstep.rollout.scoring import Scoring
from farstep.rollout.settings import Progress, RolloutSettings
from farstep.rollout.stall import StallWatch
from farstep.rollout.stats import RolloutEvents
from farstep.sampling import SamplingClient
from farstep.trainers.errors import RolloutError

log = logging.getLogger("farstep")

SampleItems = Callable[[Sequence[AgentItem]], Awaitable[list[RolloutSample]]]


class Gathering:
    """Args:
    sample: samples some items together.
    client: the policy, for log-probabilities of trained tokens that were not sampled.
    waiting: what sampling waits for, in words.
    """

    def __init__(
        self,
        sample: SampleItems,
        reward: Reward | None,
        settings: RolloutSettings,
        assembly: Assembly,
        *,
        client: SamplingClient,
        threads: Executor,
        max_row_len: int | None,
        waiting: Callable[[], list[str]] = list,
    ) -> None:
        self._sample = sample
        self._reward = reward
        self._settings = settings
        self._assembly = assembly
        self._client = client
        self._threads = threads
        self._max_row_len = max_row_len
        self._waiting = waiting

    async def run(self, parts: Sequence[Sequence[AgentItem]]) -> Rollout:
        """Raises RolloutError where no sample at all succeeded, and RewardError where some have no reward."""
        began_at = time.monotonic()
        total = sum(map(len, parts))
        watch = StallWatch(self._settings.stall_warning_s or 1e9, lambda: [*self._waiting(), *scoring.waiting()])

        def moved(progress: Progress) -> None:
            watch.moved()
            if self._settings.on_progress is not None:
                self._settings.on_progress(progress)

        settings = self._settings
        scoring = Scoring(
            self._reward,
            self._threads,
            total=total,
            room=settings.max_running_rewards,
            timeout_s=settings.reward_timeout_s,
            on_error=settings.on_reward_error,
            moved=moved,
        )
        watching = watch.watching() if self._settings.stall_warning_s else contextlib.nullcontext()
        async with watching:
            try:
                await self._sample_all(parts, scoring)
                samples = await scoring.finish()
            except BaseException:
                await scoring.abandon()
                raise
        _refuse_nothing(samples)
        await self._fill_logprobs(samples)
        trained = [self._assembly.trained(sample, max_row_len=self._max_row_len) for sample in samples]
        now = time.monotonic()
        events = RolloutEvents(
            over_long_limit=self._max_row_len,
            rollout_s=scoring.sampled_at - began_at,
            reward_s=now - scoring.began_at if scoring.began_at is not None else 0.0,
        )
        rollout = Rollout(trained, events)
        if (over_long := rollout.stats.over_long) is not None:
            log.warning("%s", over_long)
        return rollout

    async def _sample_all(self, parts: Sequence[Sequence[AgentItem]], scoring: Scoring) -> None:
        room = asyncio.Semaphore(self._settings.max_running_prompts)

        async def sample(part: Sequence[AgentItem]) -> None:
            async with room:
                for each in await self._sample(part):
                    scoring.add(each)

        tasks = [asyncio.create_task(sample(part)) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fill_logprobs(self, samples: Sequence[RolloutSample]) -> None:
        rows = [
            row
            for sample in samples
            if sample.outcome == "ok"
            for row in sample.merged
            if self._assembly.lacks_logprobs(row)
        ]
        if not rows:
            return
        futures = await self._client.compute_logprobs_batch_async([row.tokens for row in rows])
        for row, future in zip(rows, futures, strict=True):
            with_logprobs(row, await future)


def _refuse_nothing(samples: Sequence[RolloutSample]) -> None:
    """One failure loses nothing; nothing but failures is an error. What was wrong with the input is said as it is."""
    failed = [sample for sample in samples if sample.outcome == "failed"]
    refused = next((each for each in failed if isinstance(each.error, InvalidInputError)), None)
    if samples and len(failed) == len(samples) and not any(sample.reward is not None for sample in failed):
        first = failed[0]
        if refused is not None and refused.error is not None and not refused.turns:
            raise refused.error
        raise RolloutError(
            f"all {len(failed)} samples failed; the first: {type(first.error).__name__}: {first.error}",
            hint="see the error that caused this",
        ) from first.error
    if refused is not None:
        place = f"prompt {refused.prompt_index}, sample {refused.sample_index}"
        log.warning("%s cannot be sampled, and is left out: %s", place, refused.error)


def in_place(rollout: Rollout, later: Rollout, *, num_resampled: int) -> Rollout:
    """A rollout with some of its samples taken from a later one."""
    fresh = {sample.item.place: sample for sample in later.samples}
    samples = [fresh.get(sample.item.place, sample) for sample in rollout.samples]
    events = replace(rollout.events.joined(later.events))
    return replace(rollout, samples=samples, events=replace(events, num_resampled=events.num_resampled + num_resampled))
