"""A sample from its turns: rows, a record, and, once it has a reward, what is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from farstep.rollout.agents import AgentItem
from farstep.rollout.kinds import LossMaskPolicy
from farstep.rollout.merging import UNSAMPLED, Row, merge
from farstep.rollout.records import make_record
from farstep.rollout.results import RolloutSample
from farstep.rollout.spans import Spans
from farstep.rollout.turns import Turn
from farstep.trainers.sequence import TrainSequence


class Assembly:
    """Args:
    answer_key: where records have what is right; None: under one of the usual names.
    """

    def __init__(self, spans: Spans, policy: LossMaskPolicy, *, answer_key: str | None) -> None:
        self._spans = spans
        self._policy = policy
        self._answer_key = answer_key

    def sample(
        self,
        item: AgentItem,
        turns: Sequence[Turn],
        *,
        skip_special_tokens: bool = True,
        metadata: Mapping[str, Any] | None = None,
        **about: Any,
    ) -> RolloutSample:
        """A sample with rows and a record, not scored yet. Without turns it is dropped."""
        if not turns:
            given = {"outcome": "dropped", "reason": "no_turns"} | about
            return RolloutSample(item, **given)
        merged = merge(turns, self._spans)
        longest = max(len(row.tokens) for row in merged.rows)
        record = make_record(
            item,
            turns,
            merged.rows,
            self._spans,
            self._policy,
            skip_special_tokens=skip_special_tokens,
            answer_key=self._answer_key,
            metadata=metadata,
        )
        return RolloutSample(
            item,
            tuple(turns),
            merged=tuple(merged.rows),
            longest_row=longest,
            num_splits=merged.num_splits,
            record=record,
            **about,
        )

    def trained(self, sample: RolloutSample, *, max_row_len: int | None) -> RolloutSample:
        """The sample with the rows that are trained; dropped where there are none."""
        if sample.outcome == "dropped" or not sample.merged or (sample.reward is None and sample.outcome == "failed"):
            return replace(sample, merged=())
        if max_row_len is not None and sample.longest_row > max_row_len:
            return replace(sample, merged=(), outcome="dropped", reason="too_long")
        rows = [self._sequence(sample, row) for row in sample.merged if len(row.tokens) > 1]
        rows = [row for row in rows if row.num_targets]
        if not rows:
            return replace(sample, merged=(), outcome="dropped", reason="untrained")
        return replace(sample, merged=(), rows=tuple(rows))

    def lacks_logprobs(self, row: Row) -> bool:
        """Whether tokens are trained that were not sampled, and so have no log-probabilities."""
        mask = self._policy.mask(row.kinds)
        return any(weight and not sampled for weight, sampled in zip(mask, row.is_sampled, strict=True))

    def _sequence(self, sample: RolloutSample, row: Row) -> TrainSequence:
        item = sample.item
        return TrainSequence(
            tokens=list(row.tokens),
            loss_mask=self._policy.mask(row.kinds),
            prompt_mask=[int(not sampled) for sampled in row.is_sampled],
            logprobs=list(row.logprobs),
            reward=sample.reward if sample.reward is not None else 0.0,
            metadata={
                "prompt_index": item.prompt_index,
                "sample_index": item.sample_index,
                "kinds": [kind.value for kind in row.kinds],
                "policy_versions": [None if version == UNSAMPLED else version for version in row.versions],
                "policy_version": min(row.sampled_versions, default=None),
                "is_models_own": all(turn.is_models_own for turn in row.turns),
            },
        )


def with_logprobs(row: Row, logprobs: Sequence[float | None]) -> None:
    """Gives the tokens of a row [T] that were not sampled the log-probabilities that the policy had for them."""
    for index, (sampled, logprob) in enumerate(zip(row.is_sampled, logprobs, strict=True)):
        if not sampled and logprob is not None:
            row.logprobs[index] = logprob
