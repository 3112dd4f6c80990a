"""`Rollout`: the samples of a batch, and the rows that are trained of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from farstep.rollout.agents import AgentItem
from farstep.rollout.failures import FailureKind
from farstep.rollout.merging import Row
from farstep.rollout.records import RewardRecord
from farstep.rollout.stats import RolloutEvents, RolloutStats, tally
from farstep.rollout.turns import Turn
from farstep.trainers.sequence import TrainSequence

Outcome = Literal["ok", "failed", "dropped"]


@dataclass(frozen=True, slots=True)
class RolloutSample:
    """One sample.

    Args:
        turns: all answers, those that merged into no row among them.
        rows: what is trained of it; none where it failed or was dropped.
        merged: the rows before a mask was laid over them, until they are.
        longest_row: in tokens, before any was dropped.
        reward: None where nobody has scored it.
        reward_parts: what it is the sum of, by name, where the reward function said so.
        outcome, reason: "failed" and "dropped" say why.
        retried: the kinds of failure after which it was begun anew.
    requests: requests that were repeated or failed on the way, by reason.
    """

    item: AgentItem
    turns: Sequence[Turn] = ()
    rows: Sequence[TrainSequence] = ()
    merged: Sequence[Row] = ()
    longest_row: int = 0
    num_splits: int = 0
    record: RewardRecord | None = None
    reward: float | None = None
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    outcome: Outcome = "ok"
    reason: str = ""
    error: BaseException | None = None
    retried: Sequence[FailureKind] = ()
    requests: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        place = f"prompt {self.prompt_index}, sample {self.sample_index}"
        why = f" ({self.reason})" if self.reason else ""
        return f"<{place}: {self.outcome}{why}, {len(self.turns)} turns, {len(self.rows)} rows, reward {self.reward}>"

    @property
    def prompt_index(self) -> int:
        return self.item.prompt_index

    @property
    def sample_index(self) -> int:
        return self.item.sample_index

    @property
    def resp_tokens(self) -> list[int]:
        """Of the last answer; its stop token is among them."""
        return list(self.turns[-1].tokens) if self.turns else []

    @property
    def resp_logprobs(self) -> list[float]:
        return list(self.turns[-1].logprobs) if self.turns else []

    @property
    def prompt_tokens(self) -> list[int]:
        """Of the first request."""
        return list(self.turns[0].prompt) if self.turns else list(self.item.input_tokens or ())

    @property
    def finish_reason(self) -> str:
        return self.turns[-1].finish_reason if self.turns else "length"

    @property
    def policy_version(self) -> int | None:
        """The oldest that any token was sampled from; None where nothing was sampled."""
        return min((version for turn in self.turns for version in turn.versions), default=None)


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt."""

    prompt_index: int
    samples: Sequence[RolloutSample]

    @property
    def rewards(self) -> list[float]:
        return [sample.reward for sample in self.samples if sample.reward is not None]

    @property
    def rows(self) -> list[TrainSequence]:
        return [row for sample in self.samples for row in sample.rows]

    @property
    def has_signal(self) -> bool:
        """Whether its rewards differ, so that some of its samples are better than others."""
        rewards = self.rewards
        return len(rewards) > 1 and max(rewards) > min(rewards)

    @property
    def policy_version(self) -> int | None:
        versions = [sample.policy_version for sample in self.samples if sample.policy_version is not None]
        return min(versions, default=None)


@dataclass(frozen=True, slots=True)
class Rollout:
    """`samples` in the order in which they were asked for, prompt by prompt.

    Args:
        events: what happened on the way that is no sample's.
        again: samples such items once more.
    """

    samples: Sequence[RolloutSample]
    events: RolloutEvents = field(default_factory=RolloutEvents)
    again: Callable[[Sequence[AgentItem]], Awaitable[Rollout]] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Short: asyncio and logging write out the results of tasks, and a rollout may be gigabytes."""
        return f"<Rollout of {len(self.samples)} samples, {sum(len(each.rows) for each in self.samples)} rows>"

    @property
    def stats(self) -> RolloutStats:
        return tally(self.samples, self.events)

    @property
    def rows(self) -> list[TrainSequence]:
        """What is trained, each row with the reward of its sample."""
        return [row for sample in self.samples for row in sample.rows]

    @property
    def sequences(self) -> list[RolloutSample]:
        """Those that were sampled, for readers of `resp_tokens` and `resp_logprobs`."""
        return [sample for sample in self.samples if sample.turns]

    @property
    def groups(self) -> list[Group]:
        found: dict[int, list[RolloutSample]] = {}
        for sample in self.samples:
            found.setdefault(sample.prompt_index, []).append(sample)
        return [Group(index, samples) for index, samples in found.items()]

    @property
    def failures(self) -> list[RolloutSample]:
        return [sample for sample in self.samples if sample.outcome == "failed"]

    def metrics(self) -> dict[str, float]:
        return self.stats.metrics()

    def with_signal(self) -> Rollout:
        """Without the rows of groups whose samples all have the same reward; they are counted."""
        return self.keep(lambda group: group.has_signal, reason="zero_variance")

    def without_cut(self) -> Rollout:
        """Without the rows of samples whose last answer was cut by a limit; they are counted as `cut`, and their
        rewards still count in their groups."""
        samples = [
            replace(each, rows=(), outcome="dropped", reason="cut")
            if each.rows and each.finish_reason == "length"
            else each
            for each in self.samples
        ]
        return replace(self, samples=samples)

    def keep(self, wanted: Callable[[Group], bool], *, reason: str = "filtered") -> Rollout:
        """Without the rows of groups that are not wanted; their samples stay, as dropped for that reason."""
        samples: list[RolloutSample] = []
        for group in self.groups:
            if wanted(group):
                samples += group.samples
                continue
            for sample in group.samples:
                if sample.rows:
                    sample = replace(sample, rows=(), outcome="dropped", reason=reason)
                samples.append(sample)
        return replace(self, samples=samples)

    def shown(self, count: int = 3, *, width: int = 400) -> list[dict[str, Any]]:
        """A few samples for people to read, of as many prompts: `prompt`, `completion`, `reward`, `place`."""
        known = [sample for sample in self.samples if sample.record is not None]
        known.sort(key=lambda sample: sample.item.place[::-1])
        return [
            {
                "prompt": sample.record.prompt[:width],
                "completion": sample.record.completion[:width],
                "reward": sample.reward,
                "place": sample.item.place,
            }
            for sample in known[:count]
            if sample.record is not None
        ]
