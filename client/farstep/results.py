"""What calls give back. Times are in UTC; positions are counted from 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from farstep._tensor_data import TensorData

TokenLogprob = tuple[int, float]


@dataclass(frozen=True, slots=True)
class ForwardBackwardOutput:
    """Of one pass over a batch.

    Args:
        loss: mean over the active tokens, or over pairs, for people to read; of a loss of one's own, what it gave.
        metrics: `loss:sum` is what was differentiated; the rest depends on the loss.
        loss_fn_outputs: per datum; `logprobs` is [T] or [T, K]; of the loss `value`, `values` is [T] instead.
    """

    loss: float
    metrics: Mapping[str, float]
    loss_fn_outputs: list[dict[str, TensorData]]


@dataclass(frozen=True, slots=True)
class OptimStepResponse:
    """`metrics` has `grad_norm`, `learning_rate` and `step`."""

    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SaveWeightsResponse:
    """`path` is empty where nothing was kept; `policy_version` is None where nothing was published."""

    path: str
    policy_version: int | None = None


@dataclass(frozen=True, slots=True)
class LoadWeightsResponse:
    """`step` is the number of optimizer steps that the run now has behind it."""

    path: str
    step: int


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """One sampled sequence of n tokens.

    Args:
        tokens: [n], with the stop token where one was met.
        logprobs: [n], under the distribution that was sampled from.
        stop_reason: whether it ended by itself or by `max_tokens`.
        policy_versions: [n], the version that each token was sampled from.
        topk_logprobs: for each token the likeliest candidates; None where they were not asked for.
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]
    policy_versions: list[int]
    topk_logprobs: list[list[TokenLogprob]] | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One token of a stream, with its log-probability under the distribution that it was sampled from.

    Args:
        policy_version: the version that it was sampled from.
        topk_logprobs: the likeliest candidates; None where they were not asked for.
    """

    token: int
    logprob: float
    policy_version: int
    topk_logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """All sequences of one prompt of T tokens.

    Args:
        prompt_logprobs: [T] at temperature 1, None at index 0; None where they were not asked for.
        topk_prompt_logprobs: for each prompt token the likeliest candidates, None at index 0.
    """

    sequences: list[SampledSequence]
    prompt_logprobs: list[float | None] | None
    topk_prompt_logprobs: list[list[TokenLogprob] | None] | None
    policy_version: int
    prompt_cache_hit_tokens: int


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """`alpha` 0 means equal to `rank`; no `target_modules` means that the three `train_` switches choose."""

    rank: int
    alpha: float = 0.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    value_head: bool = False


@dataclass(frozen=True, slots=True)
class TrainingInfo:
    """What a run is made of. `max_seq_len` is in tokens; `value_head`: whether it takes the loss `value`."""

    run_id: str
    base_model: str
    lora_rank: int
    max_seq_len: int
    vocab_size: int
    value_head: bool = False


@dataclass(frozen=True, slots=True)
class OperationTrace:
    """Where one operation's time went, in seconds, at the server.

    Args:
        queued_s: from the arrival of its last part to its start.
        phases_s: of "decode", "forward", "backward", "optimizer", "checkpoint" and "encode" those it had.
        total_s: from arrival to outcome.
        computed_s: from its start until the trainer could start the next one; decoding and encoding are not in it.
        fused_with: ids of operations of other runs that were computed in the same batch, which changes no number; the
            times of "forward" and "backward" are then an even share.
    """

    operation_id: str
    verb: str
    failed: bool
    submitted_at: datetime
    queued_s: float
    phases_s: Mapping[str, float]
    total_s: float
    num_tokens: int
    computed_s: float
    fused_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueuedOperation:
    """`place` is how many operations run before a queued one."""

    operation_id: str
    verb: str
    state: Literal["queued", "running", "finished"]
    place: int


@dataclass(frozen=True, slots=True)
class SupportedModel:
    """`max_context_length` is in tokens; a warm model needs no loading."""

    model_name: str
    max_context_length: int
    warm: bool


@dataclass(frozen=True, slots=True)
class ServerCapabilities:
    """What a server can do; `max_lora_rank` is None where it is not said."""

    supported_models: tuple[SupportedModel, ...]
    loss_fns: tuple[str, ...]
    engines: tuple[str, ...]
    accelerator: str
    max_request_bytes: int
    max_lora_rank: int | None
    any_hub_model: bool
    version: str


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as the control plane knows it."""

    run_id: str
    session_id: str
    state: str
    message: str
    base_model: str
    lora: LoraConfig
    name: str
    user_metadata: Mapping[str, str]
    created_at: datetime
    project: str = ""
