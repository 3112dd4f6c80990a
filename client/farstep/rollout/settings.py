"""What a rollout session is told, checked at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from farstep.rollout.failures import RetryPolicy
from farstep.rollout.kinds import LossMaskPolicy
from farstep.rollout.params import SamplingParams
from farstep.trainers.errors import RolloutError

OnFailure = Literal["drop", "reward", "raise"]
OnRewardError = Literal["raise", "drop"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rollout is. `total` samples were asked for."""

    total: int
    sampled: int
    scored: int


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Args:
    sampling_params: of calls and requests that say nothing else.
    loss_mask_policy: which kinds of spans are trained.
    max_running_prompts: samples of agents, or prompts of direct rollouts, under way at a time.
    max_running_rewards: reward functions under way at a time; they never hold up sampling.
    timeout_s: for one attempt of an agent; None: no limit.
    proxy: whether to serve the OpenAI API to agents.
    in_flight: "switch": newer versions of the policy are taken up while sampling, also in mid-sequence.
    max_staleness: groups whose oldest token is more published versions behind the run's newest one than this are
        sampled again, with the newest; None: never.
    max_resamples: how often a group is, before it is dropped.
    max_row_len: rows with more tokens are dropped; None: what the trainer takes.
    on_failure: of samples that failed for good: "drop" them, give them `failure_reward`, or "raise".
    on_reward_error: of samples without a finite reward, from a function or from their agent: "raise" an error that
        names them when all others are scored, or "drop" them, counted as failed for the reason "reward".
    reward_timeout_s: for one reward; None: no limit.
    answer_key: where records have what is right; None: answer, solution, solutions, target or label.
    stall_warning_s: a warning where nothing has ended for so long; None: none.
    """

    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    loss_mask_policy: LossMaskPolicy = field(default_factory=LossMaskPolicy)
    max_running_prompts: int = 64
    max_running_rewards: int = 32
    timeout_s: float | None = None
    proxy: bool = False
    in_flight: Literal["finish", "switch"] = "finish"
    max_staleness: int | None = None
    max_resamples: int = 3
    max_row_len: int | None = None
    max_turns: int | None = None
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    on_failure: OnFailure = "drop"
    failure_reward: float = 0.0
    on_reward_error: OnRewardError = "raise"
    reward_timeout_s: float | None = None
    answer_key: str | None = None
    stall_warning_s: float | None = 60.0
    on_progress: Callable[[Progress], object] | None = None

    def __post_init__(self) -> None:
        for name in ("max_running_prompts", "max_running_rewards", "max_resamples", "max_row_len", "max_turns"):
            self._require(name, lambda value: value is None or _is_whole(value, 1), "a whole number of at least 1")
        self._require("max_staleness", lambda value: value is None or _is_whole(value, 0), "a whole number from 0 on")
        for name in ("timeout_s", "stall_warning_s", "reward_timeout_s"):
            self._require(name, lambda value: value is None or (_is_number(value) and value > 0), "positive")
        self._require("failure_reward", lambda value: _is_number(value) and math.isfinite(value), "a finite number")
        for name, allowed in _CHOICES.items():
            self._require(name, allowed.__contains__, f"one of {', '.join(allowed)}")
        for name, kind in _KINDS.items():
            self._require(name, kind.__instancecheck__, f"a {kind.__name__}")

    def _require(self, name: str, holds: Callable[[Any], bool], what: str) -> None:
        if not holds(value := getattr(self, name)):
            raise RolloutError(f"{value!r} is not {what}", field=name)


_CHOICES = {"in_flight": ("finish", "switch"), "on_failure": ("drop", "reward", "raise"),
            "on_reward_error": ("raise", "drop")}  # fmt: skip
_KINDS = {"sampling_params": SamplingParams, "loss_mask_policy": LossMaskPolicy, "retries": RetryPolicy}


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
