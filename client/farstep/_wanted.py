"""What a caller wants to be provisioned: checked here, before anything is asked of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from farstep._convert import lora_from_proto, lora_to_proto, number, text_map, whole_number
from farstep.errors import InvalidInputError, checked
from farstep.results import LoraConfig
from farstep.types import WandbConfig
from farstep_proto.names import check_name
from farstep_proto.validation import resolve_lora


class RunOptions(TypedDict, total=False):
    """What can be said about any new run beside its model and adapter; times in seconds."""

    seed: int | None
    max_seq_len: int | None
    replicas: int
    with_sampler: bool
    sampler_replicas: int
    name: str | None
    user_metadata: Mapping[str, str] | None
    timeout: float
    ready_timeout: float


class FromStateOptions(RunOptions, total=False):
    """What can be said about a run that starts from a checkpoint; model and adapter are the checkpoint's.

    `value_head` gives the run a fresh value head beside a checkpoint's weights, or leaves that of a checkpoint out;
    None: as the checkpoint has it.
    """

    value_head: bool | None
    wandb_config: WandbConfig | None


@dataclass(frozen=True, slots=True)
class WantedRun:
    """A new run; times in seconds."""

    base_model: str
    lora: LoraConfig
    seed: int | None
    max_seq_len: int | None
    replicas: int
    with_sampler: bool
    sampler_replicas: int
    name: str | None
    user_metadata: Mapping[str, str]
    timeout_s: float
    ready_timeout_s: float


@dataclass(frozen=True, slots=True)
class WantedSampler:
    """Exactly one of `base_model` and `model_path` is not empty."""

    base_model: str
    model_path: str
    replicas: int
    ready_timeout_s: float


def wanted_run(base_model: str, lora: LoraConfig, **options: Unpack[RunOptions]) -> WantedRun:
    """Raises InvalidInputError or TypeError, naming the argument."""
    if not isinstance(base_model, str):
        raise TypeError(f"base_model: must be text, not {type(base_model).__name__}")
    if not base_model:
        raise InvalidInputError("is empty", field="base_model")
    unknown = options.keys() - RunOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    seed, max_seq_len, name = options.get("seed"), options.get("max_seq_len"), options.get("name")
    if name is not None:
        with checked():
            check_name(name)
    return WantedRun(
        base_model=base_model,
        lora=lora,
        seed=None if seed is None else whole_number("seed", seed, at_least=0),
        max_seq_len=None if max_seq_len is None else whole_number("max_seq_len", max_seq_len, at_least=1),
        replicas=whole_number("replicas", options.get("replicas", 1), at_least=1),
        with_sampler=options.get("with_sampler", True),
        sampler_replicas=whole_number("sampler_replicas", options.get("sampler_replicas", 1), at_least=1),
        name=name,
        user_metadata=text_map("user_metadata", options.get("user_metadata")),
        timeout_s=number("timeout", options.get("timeout", 600.0)),
        ready_timeout_s=number("ready_timeout", options.get("ready_timeout", 3600.0)),
    )


def wanted_lora(
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    train_attn: bool = True,
    train_mlp: bool = True,
    train_unembed: bool = False,
    use_rslora: bool = False,
    use_dora: bool = False,
    value_head: bool = False,
) -> LoraConfig:
    """Raises InvalidInputError or TypeError, naming the argument."""
    if isinstance(target_modules, str) or not all(isinstance(module, str) for module in target_modules or ()):
        raise TypeError("target_modules: must be a list of names")
    lora = LoraConfig(
        rank=whole_number("rank", rank, at_least=1),
        alpha=0.0 if alpha is None else number("alpha", alpha),
        dropout=number("dropout", dropout),
        target_modules=tuple(target_modules or ()),
        train_attn=train_attn,
        train_mlp=train_mlp,
        train_unembed=train_unembed,
        use_rslora=use_rslora,
        use_dora=use_dora,
        value_head=value_head,
    )
    with checked():
        return lora_from_proto(resolve_lora(lora_to_proto(lora)))
