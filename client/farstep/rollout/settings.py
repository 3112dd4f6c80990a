"""What a rollout session is told, checked at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from farstep.rollout.failures import RetryPolicy
from farstep.rollout.kinds import LossMaskPolicy
from farstep.rollout.params import SamplingParams
from farstep.trainers.errors import RolloutError

OnFailure = Literal["drop", "reward", "raise"]


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
    answer_key: str | None = None
    stall_warning_s: float | None = 60.0
    on_progress: Callable[[Progress], object] | None = None

    def __post_init__(self) -> None:
        for name in ("max_running_prompts", "max_running_rewards", "max_resamples", "max_row_len", "max_turns"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise RolloutError(f"{value!r} is not a whole number of at least 1", field=name)
        for name in ("timeout_s", "stall_warning_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RolloutError(f"{value!r} is not positive", field=name)
        if self.max_staleness is not None and self.max_staleness < 0:
            raise RolloutError(f"{self.max_staleness} is negative", field="max_staleness")
        if self.in_flight not in ("finish", "switch"):
            raise RolloutError(f"{self.in_flight!r} is neither 'finish' nor 'switch'", field="in_flight")
        if self.on_failure not in ("drop", "reward", "raise"):
            raise RolloutError(f"{self.on_failure!r} is none of drop, reward and raise", field="on_failure")
