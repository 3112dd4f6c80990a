"""What a configuration says of rollouts, in the terms of `farstep.rollout`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from farstep.rollout.failures import RetryPolicy
from farstep.rollout.kinds import LossMaskPolicy
from farstep.rollout.params import SamplingParams

if TYPE_CHECKING:
    from farstep.trainers.config import TrainerConfig

_ON_FAILURE = {"drop": "drop", "raise": "raise", "zero_reward": "reward"}


def rollout_params(config: TrainerConfig, *, max_seq_len: int | None) -> SamplingParams:
    """How answers are sampled. The seed is of all of them; a batch draws its own from it (`seed_for`)."""
    wanted = config.sampling
    limits = [each for each in (wanted.max_context_length, max_seq_len) if each]
    return SamplingParams(
        greedy=wanted.greedy,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        max_new_tokens=wanted.max_tokens,
        max_context_len=min(limits) if limits else None,
        max_prompt_len=config.data.max_prompt_length,
        stop=[each for each in wanted.stop if isinstance(each, str)] or None,
        stop_token_ids=[each for each in wanted.stop if isinstance(each, int)],
        ignore_eos=wanted.ignore_eos,
        seed=config.seed if wanted.seed is None else wanted.seed,
    )


def session_settings(config: TrainerConfig, *, has_agent: bool) -> Mapping[str, Any]:
    """Settings of a rollout session."""
    rl = config.rl
    is_own_key = config.data.solutions_key != type(config.data).model_fields["solutions_key"].default
    return {
        "loss_mask_policy": LossMaskPolicy(**rl.loss_mask.model_dump()),
        "max_running_prompts": rl.max_running,
        "timeout_s": rl.timeout_s,
        "proxy": has_agent,
        "max_staleness": rl.max_staleness or None,
        "retries": RetryPolicy(
            model_request=rl.max_retries,
            bad_tool_arguments=min(rl.max_retries, 1),
            tool_failure=min(rl.max_retries, 1),
        ),
        "max_turns": rl.max_turns,
        "max_running_rewards": rl.max_running_rewards,
        "reward_timeout_s": rl.reward_timeout_s,
        "on_reward_error": rl.on_reward_error,
        "on_failure": _ON_FAILURE[rl.on_agent_error],
        "answer_key": config.data.solutions_key if is_own_key else None,
    }
