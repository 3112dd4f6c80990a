"""What a rollout session is told, checked at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

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
    on_reward_error: of samples without a finite reward, from a function or from their agent: "raise" an error that names
        them when all others are scored, or "drop" them, counted as failed for the reason "reward".
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
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise RolloutError(f"{value!r} is not a whole number of at least 1", field=name)
        for name in ("timeout_s", "stall_warning_s", "reward_timeout_s"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0):
                raise RolloutError(f"{value!r} is not positive", field=name)
        staleness = self.max_staleness
        if staleness is not None and (not isinstance(staleness, int) or isinstance(staleness, bool) or staleness < 0):
            raise RolloutError(f"{staleness!r} is not a whole number of at least 0", field="max_staleness")
        if not (_is_number(self.failure_reward) and math.isfinite(self.failure_reward)):
            raise RolloutError(f"{self.failure_reward!r} is not a finite number", field="failure_reward")
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise RolloutError(f"{value!r} is none of {', '.join(allowed)}", field=name)
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise RolloutError(f"a {type(value).__name__} is no {kind.__name__}", field=name)


_CHOICES = {"in_flight": ("finish", "switch"), "on_failure": ("drop", "reward", "raise"),
            "on_reward_error": ("raise", "drop")}  # fmt: skip
_KINDS = {"sampling_params": SamplingParams, "loss_mask_policy": LossMaskPolicy, "retries": RetryPolicy}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
