"""What became of the samples that were asked for, in numbers. Decides nothing."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from farstep.rollout.results import RolloutSample


@dataclass(slots=True)
class Funnel:
    """Samples that came so far: asked for, sampled, with all their calls parsed, scored, trained."""

    asked: int = 0
    sampled: int = 0
    parsed: int = 0
    scored: int = 0
    trained: int = 0


@dataclass(frozen=True, slots=True)
class OverLong:
    """Rows that were longer than can be trained, and so were dropped.

    Args:
        percentiles: lengths of all rows of the rollout, over-long ones among them, by percentile.
        longest: (tokens, prompt, sample) of the five longest.
    """

    limit: int
    num_dropped: int
    percentiles: Mapping[int, int]
    longest: Sequence[tuple[int, int, int]]

    @classmethod
    def of(cls, lengths: Mapping[tuple[int, int], int], limit: int) -> OverLong | None:
        """Of samples' longest rows by place; None where none is over the limit."""
        num_dropped = sum(length > limit for length in lengths.values())
        if not num_dropped:
            return None
        sizes = sorted(lengths.values())
        percentiles = {p: int(np.percentile(sizes, p, method="higher")) for p in (50, 90, 99, 100)}
        longest = sorted(((length, *place) for place, length in lengths.items()), reverse=True)[:5]
        return cls(limit, num_dropped, percentiles, longest)

    def __str__(self) -> str:
        spread = ", ".join(f"p{p} {length}" for p, length in self.percentiles.items())
        rows = ", ".join(f"{length} (prompt {prompt}, sample {sample})" for length, prompt, sample in self.longest)
        return f"{self.num_dropped} samples are over {self.limit} tokens and were dropped; {spread}; longest: {rows}"


@dataclass(frozen=True, slots=True)
class RolloutEvents:
    """What happened on the way. `over_long_limit` is what rows were held to; seconds are of the wall clock."""

    num_resampled: int = 0
    over_long_limit: int | None = None
    rollout_s: float = 0.0
    reward_s: float = 0.0

    def joined(self, later: RolloutEvents) -> RolloutEvents:
        return RolloutEvents(
            self.num_resampled + later.num_resampled,
            self.over_long_limit,
            self.rollout_s + later.rollout_s,
            self.reward_s + later.reward_s,
        )


@dataclass(slots=True)
class RolloutStats:
    """Args:
    failed, dropped: samples by reason: kinds of failures; `too_long`, `prompt_too_long`, `no_turns`, `filtered`, `cut`,
        `zero_variance`, `stale`, `untrained` (nothing in it is trained).
    retried: attempts that were begun anew, by kind of failure; `requests`: requests that the proxy repeated or that
        failed, by reason.
    num_splits: rows that were begun because a template rewrote what was said before.
    num_resampled: samples that were sampled again because their policy was too old.
    """

    funnel: Funnel = field(default_factory=Funnel)
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    num_splits: int = 0
    num_turns: int = 0
    num_tool_calls: int = 0
    num_parse_errors: int = 0
    num_cut: int = 0
    num_resampled: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    response_tokens: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0
    num_sampled_tokens: int = 0
    rewards: list[float] = field(default_factory=list)
    reward_parts: dict[str, list[float]] = field(default_factory=dict)
    versions: set[int] = field(default_factory=set)
    over_long: OverLong | None = None
    rollout_s: float = 0.0
    reward_s: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Flat numbers under `rollout/` and `time/`."""
        found: dict[str, float] = {}
        for name, value in asdict(self.funnel).items():
            found[f"rollout/funnel/{name}"] = float(value)
        for group in ("failed", "dropped", "retried", "requests"):
            for reason, count in sorted(getattr(self, group).items()):
                found[f"rollout/{group}/{reason}"] = float(count)
        sampled = max(self.funnel.sampled, 1)
        found |= {
            "rollout/rows": float(self.num_rows),
            "rollout/splits": float(self.num_splits),
            "rollout/turns_mean": self.num_turns / sampled,
            "rollout/tool_calls_mean": self.num_tool_calls / sampled,
            "rollout/parse_errors": float(self.num_parse_errors),
            "rollout/cut_fraction": self.num_cut / sampled,
            "rollout/resampled": float(self.num_resampled),
            "time/rollout_s": self.rollout_s,
            "time/reward_s": self.reward_s,
        }
        found |= _spread("rollout/prompt_len", self.prompt_tokens) | _spread(
            "rollout/response_len", self.response_tokens
        )
        found |= _spread("rollout/reward", self.rewards)
        for name, values in sorted(self.reward_parts.items()):
            found[f"rollout/reward/{name}_mean"] = statistics.fmean(values)
            found[f"rollout/reward/{name}_std"] = statistics.pstdev(values)
        if self.num_sampled_tokens:
            found["rollout/logprob_mean"] = self.logprob_sum / self.num_sampled_tokens
            found["rollout/tokens_per_s"] = self.num_sampled_tokens / max(self.rollout_s, 1e-9)
        if self.versions:
            found["rollout/policy_version_min"] = float(min(self.versions))
            found["rollout/policy_version_max"] = float(max(self.versions))
        return found

    def reward_histogram(self, bins: int = 20) -> tuple[list[float], list[int]]:
        """Edges [bins + 1] and counts [bins] of the rewards; empty where there are none."""
        if not self.rewards:
            return [], []
        counts, edges = np.histogram(self.rewards, bins=bins)
        return edges.tolist(), counts.tolist()


def tally(samples: Sequence[RolloutSample], events: RolloutEvents) -> RolloutStats:
    """The numbers of some samples."""
    stats = RolloutStats(num_resampled=events.num_resampled, rollout_s=events.rollout_s, reward_s=events.reward_s)
    for sample in samples:
        _count(stats, sample)
    if events.over_long_limit is not None:
        lengths = {sample.item.place: sample.longest_row for sample in samples if sample.longest_row}
        stats.over_long = OverLong.of(lengths, events.over_long_limit)
    return stats


def _count(stats: RolloutStats, sample: RolloutSample) -> None:
    funnel, turns = stats.funnel, sample.turns
    num_errors = sum(len(turn.call_errors) for turn in turns)
    funnel.asked += 1
    funnel.sampled += bool(turns)
    funnel.parsed += bool(turns) and not num_errors
    funnel.scored += sample.reward is not None
    funnel.trained += bool(sample.rows)
    if sample.outcome == "failed":
        stats.failed[sample.reason] += 1
    elif sample.outcome == "dropped":
        stats.dropped[sample.reason] += 1
    stats.retried.update(sample.retried)
    stats.requests.update(sample.requests)
    stats.num_rows += len(sample.rows)
    stats.num_splits += sample.num_splits
    stats.num_turns += len(turns)
    stats.num_tool_calls += sum(len(turn.tool_calls) for turn in turns)
    stats.num_parse_errors += num_errors
    stats.num_cut += sample.finish_reason == "length" if turns else 0
    stats.rewards += [sample.reward] if sample.reward is not None else []
    for name, value in sample.reward_parts.items():
        stats.reward_parts.setdefault(name, []).append(value)
    if turns:
        stats.prompt_tokens.append(len(turns[0].prompt))
        stats.response_tokens.append(sum(len(turn.tokens) for turn in turns))
    for turn in turns:
        stats.logprob_sum += sum(turn.logprobs)
        stats.num_sampled_tokens += len(turn.tokens)
        stats.versions.update(turn.versions)


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        f"{name}_mean": statistics.fmean(values),
        f"{name}_std": statistics.pstdev(values),
        f"{name}_min": float(min(values)),
        f"{name}_max": float(max(values)),
    }
