"""Numbers of a rollout."""

import pytest

from farstep.rollout.agents import AgentItem
from farstep.rollout.records import RewardRecord
from farstep.rollout.results import Rollout, RolloutSample
from farstep.rollout.stats import OverLong, RolloutEvents
from farstep.rollout.turns import Turn
from farstep.trainers.sequence import TrainSequence


def sample(prompt: int, index: int, *, reward: float | None = 1.0, length: int = 4, **about: object) -> RolloutSample:
    turn = Turn([1] * (length - 2), [2, 3], [-1.0, -2.0], [5, 6], finish_reason="length")
    row = TrainSequence.from_prompt_completion([1] * (length - 2), [2, 3])
    fields = {"turns": (turn,), "rows": (row,), "longest_row": length, "reward": reward, **about}
    return RolloutSample(AgentItem({}, "p", None, prompt, index), **fields)  # type: ignore[arg-type]


def test_the_funnel_and_its_numbers() -> None:
    failed = sample(0, 1, reward=None, rows=(), outcome="failed", reason="tool_failure", retried=("tool_failure",))
    nothing = sample(1, 0, reward=None, rows=(), turns=(), longest_row=0, outcome="dropped", reason="no_turns")
    rollout = Rollout([sample(0, 0), failed, nothing, sample(1, 1, reward=3.0)], RolloutEvents(rollout_s=2.0))
    metrics = rollout.metrics()
    funnel = [metrics[f"rollout/funnel/{name}"] for name in ("asked", "sampled", "parsed", "scored", "trained")]
    assert funnel == [4, 3, 3, 2, 2]
    assert (metrics["rollout/failed/tool_failure"], metrics["rollout/dropped/no_turns"]) == (1, 1)
    assert metrics["rollout/retried/tool_failure"] == 1
    assert (metrics["rollout/reward_mean"], metrics["rollout/reward_std"]) == (2.0, 1.0)
    assert metrics["rollout/logprob_mean"] == -1.5
    assert metrics["rollout/tokens_per_s"] == 3.0
    assert (metrics["rollout/policy_version_min"], metrics["rollout/policy_version_max"]) == (5, 6)
    assert metrics["rollout/cut_fraction"] == 1.0
    assert rollout.stats.reward_histogram(bins=2) == ([1.0, 2.0, 3.0], [1, 1])
    assert Rollout([]).stats.reward_histogram() == ([], [])
    assert Rollout([]).metrics()["rollout/funnel/asked"] == 0


def test_groups_without_a_difference_are_left_out_and_counted() -> None:
    rollout = Rollout([sample(0, 0), sample(0, 1), sample(1, 0), sample(1, 1, reward=0.0), sample(2, 0)])
    kept = rollout.with_signal()
    assert [each.reason for each in kept.samples] == ["zero_variance", "zero_variance", "", "", "zero_variance"]
    assert (len(kept.rows), kept.stats.dropped) == (2, {"zero_variance": 3})
    assert (len(rollout.rows), rollout.stats.dropped) == (5, {})
    assert rollout.groups[1].rewards == [1.0, 0.0]


def test_over_long_rows_are_told_with_percentiles_and_the_longest() -> None:
    lengths = {(0, index): 10 * (index + 1) for index in range(10)}
    over = OverLong.of(lengths, limit=70)
    assert over is not None
    assert (over.num_dropped, dict(over.percentiles)) == (3, {50: 60, 90: 100, 99: 100, 100: 100})
    assert over.longest == [(100, 0, 9), (90, 0, 8), (80, 0, 7), (70, 0, 6), (60, 0, 5)]
    assert "3 samples are over 70 tokens" in str(over)
    assert OverLong.of(lengths, limit=100) is None
    rollout = Rollout([sample(0, 0, length=9)], RolloutEvents(over_long_limit=5))
    assert rollout.stats.over_long is not None
    assert rollout.stats.over_long.num_dropped == 1


def test_samples_for_people() -> None:
    assert Rollout([sample(0, 0)]).shown() == []
    record = RewardRecord(
        prompt="1+1?", completion="2", rendered_completion="2", final_answer="2", answer="2", messages=[], trace=[],
        tool_calls=[], tool_results=[], tokens=[1], logprobs=[0.0], loss_mask=[0.0], source_record={},
    )  # fmt: skip
    scored = [sample(prompt, index, record=record) for prompt in (0, 1) for index in (0, 1, 2)]
    assert [each["place"] for each in Rollout(scored).shown(3)] == [(0, 0), (1, 0), (0, 1)]
    assert pytest.approx(1.0) == sample(0, 0).reward


def test_a_rollout_is_written_out_in_a_line() -> None:
    """asyncio writes out what a task gave when it looks at a signal handler: all tokens of a rollout took minutes."""
    rollout = Rollout([sample(0, index, length=4000) for index in range(8)])
    assert repr(rollout) == "<Rollout of 8 samples, 8 rows>"
    assert repr(rollout.samples[3]) == "<prompt 0, sample 3: ok, 1 turns, 1 rows, reward 1.0>"
    assert len(repr(rollout.groups)) + len(repr(rollout.rows)) + len(repr(rollout.samples[0].turns)) < 2500


def test_parts_of_rewards_and_answers_that_were_cut() -> None:
    parts = [{"format": 1.0, "right": 0.0}, {"format": 0.0, "right": 3.0}]
    rollout = Rollout(
        [sample(0, index, reward=sum(each.values()), reward_parts=each) for index, each in enumerate(parts)]
    )
    metrics = rollout.metrics()
    assert (metrics["rollout/reward/format_mean"], metrics["rollout/reward/right_mean"]) == (0.5, 1.5)
    assert metrics["rollout/reward/right_std"] == 1.5
    without = rollout.without_cut()  # every sample here was
    assert (without.rows, without.stats.dropped) == ([], {"cut": 2})
    assert without.groups[0].rewards == [1.0, 3.0]
