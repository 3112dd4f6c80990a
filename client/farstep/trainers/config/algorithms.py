"""What only some trainers have: preference losses, reinforcement learning, its critic, sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from farstep.trainers.config.model import Name
from farstep.trainers.config.numbers import Count, Fractional, NonNegative, Number, Positive, Whole
from farstep.trainers.config.section import Section


class PreferenceConfig(Section):
    """dpo and ipo."""

    beta: Annotated[Number, Field(gt=0)] = 0.1
    label_smoothing: Annotated[Fractional, Field(lt=0.5)] = 0.0
    loss: Literal["sigmoid", "ipo"] | None = Field(default=None, description="the trainer's own where absent")
    length_normalized: bool = Field(
        default=False, description="preferences by means over tokens, as of TRL's ipo and sigmoid_norm, not by sums"
    )
    reference: Name | None = Field(
        default=None, description="a checkpoint; the weights that the run began with where absent"
    )


class SamplingConfig(Section):
    """How answers are sampled, in training and evaluation."""

    max_tokens: Positive = 512
    max_context_length: Positive | None = Field(
        default=None, description="tokens of a whole conversation with an agent"
    )
    temperature: NonNegative = 1.0
    top_p: Annotated[Fractional, Field(gt=0)] = 1.0
    top_k: Whole = -1
    min_p: Fractional = 0.0
    seed: Whole | None = None
    stop: tuple[str | int, ...] = ()
    ignore_eos: bool = False
    greedy: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str | int) else tuple(value) if isinstance(value, list) else value


class LossMaskConfig(Section):
    """Which spans of a conversation with an agent are trained."""

    assistant_text: bool = True
    assistant_tool_calls: bool = True
    final_assistant_text: bool = True
    tool_results: bool = False
    system_prompt: bool = False
    user_prompt: bool = False


class CriticConfig(Section):
    """ppo's value model."""

    path: Name | None = None
    lr: NonNegative = 1e-5
    warmup_steps: Count = Field(default=20, description="steps in which it alone is trained")
    clip: NonNegative = 0.5
    coef: NonNegative = 0.5


class RLConfig(Section):
    """grpo, gspo and ppo. A step asks for `group_size` answers to each of `batch_size` prompts."""

    reward: str | Callable[..., Any] | None = Field(default=None, description="module:function, or the function")
    agent: str | Callable[..., Any] | None = None
    group_size: Positive = 8
    updates_per_rollout: Positive = 1
    clip_low: Fractional = 0.2
    clip_high: NonNegative = 0.2
    dual_clip: Annotated[Number, Field(gt=1)] | None = None
    ratio: Literal["sampled", "unit"] = Field(default="sampled", description="old log-probabilities; unit: always 1")
    recompute_old_logprobs: bool = False
    kl_coef: NonNegative = 0.0
    kl_type: Literal["k1", "abs", "k2", "k3"] = "k3"
    kl_corrected: bool = Field(default=False, description="its estimate times the token's ratio: an unbiased gradient")
    reference: Name | None = None
    normalize_advantages: Literal["std", "mean", "batch", "none"] = "std"
    drop_zero_variance: bool = False
    drop_cut: bool = Field(default=False, description="answers that were cut by a limit are scored but not trained")
    loss_aggregation: Literal["token", "sequence", "constant"] = Field(
        default="token",
        description="a mean over all tokens, or over rows of each one's mean, or of its sum over sampling.max_tokens",
    )
    gamma: Fractional = 1.0
    gae_lambda: Fractional = 0.95
    max_staleness: Count = 0
    max_running: Positive = 64
    max_retries: Count = 2
    timeout_s: Annotated[Number, Field(gt=0)] | None = None
    on_agent_error: Literal["drop", "raise", "zero_reward"] = "drop"
    max_turns: Positive | None = Field(default=None, description="answers of one sample of an agent")
    max_running_rewards: Positive = 32
    reward_timeout_s: Annotated[Number, Field(gt=0)] | None = None
    on_reward_error: Literal["raise", "drop"] = Field(
        default="raise", description="where a reward fails or is not finite: end the run, or leave the sample out"
    )
    keep_rollouts: Literal["none", "text", "tokens"] = Field(
        default="none", description="write each rollout into the run's folder, with or without its tokens"
    )
    event_rows: Count = Field(
        default=0, description="rows of each rollout that go whole into its event; 0: a piece of two, at steps 1, 2, 4…"
    )
    loss_mask: LossMaskConfig = LossMaskConfig()
    critic: CriticConfig = CriticConfig()

    @field_validator("kl_type", mode="before")
    @classmethod
    def _spelling(cls, value: object) -> object:
        others = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
        return others.get(value, value) if isinstance(value, str) else value
