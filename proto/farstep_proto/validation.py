"""Whether data fits a loss: decided on the arrays alone, the same on the client and on the worker."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import BOUND_INPUTS, IGNORE_INDEX, INT_INPUTS, LOSS_TABLE, MASK_INPUTS, LossSpec
from farstep_proto.tensors import Array, IntArray
from farstep_proto.v1 import common_pb2 as pb

MAX_LORA_RANK = 512
ADAPTERS = ("current", "base", "start")


def resolve_lora(lora: pb.LoraConfig) -> pb.LoraConfig:
    """The same settings with their defaults filled in: alpha equal to the rank, attention and MLP trained.

    Raises:
        InvalidInput: naming the field, as `lora.rank`.
    """
    resolved = pb.LoraConfig(train_attn=True, train_mlp=True)
    resolved.MergeFrom(lora)
    resolved.alpha = resolved.alpha or resolved.rank
    if not 1 <= resolved.rank <= MAX_LORA_RANK:
        raise InvalidInput(f"{resolved.rank} is not between 1 and {MAX_LORA_RANK}", field="lora.rank")
    if not (math.isfinite(resolved.alpha) and resolved.alpha > 0):
        raise InvalidInput(f"{resolved.alpha} is not a positive number", field="lora.alpha")
    if not 0 <= resolved.dropout < 1:
        raise InvalidInput(f"{resolved.dropout} is not a probability below 1", field="lora.dropout")
    switches = (resolved.train_attn, resolved.train_mlp, resolved.train_unembed)
    if not (resolved.target_modules or any(switches)):
        hint = "set train_attn, train_mlp, train_unembed or target_modules"
        raise InvalidInput("nothing to train", field="lora", hint=hint)
    return resolved


def check_loss(loss_fn: str, config: Mapping[str, float], *, backward: bool = True) -> LossSpec:
    """Returns the loss's entry; where a setting makes an optional input necessary, with that among the required ones,
    and for a pass without a gradient with what such a pass can do without among the optional ones.

    Raises:
        InvalidInput: an unknown loss, an unknown setting, one that is not a finite number or outside its range, or
            bounds out of order.
    """
    spec = LOSS_TABLE.get(loss_fn)
    if spec is None:
        raise InvalidInput(f"unknown loss {loss_fn!r}", field="loss_fn", hint=f"one of {', '.join(sorted(LOSS_TABLE))}")
    for key, value in config.items():
        where = f"loss_fn_config.{key}"
        if key not in spec.defaults:
            known = ", ".join(sorted(spec.defaults)) or "none"
            raise InvalidInput(f"{loss_fn} has no setting {key!r}", field=where, hint=f"its settings: {known}")
        if not math.isfinite(value):
            raise InvalidInput(f"{value} is not a finite number", field=where)
    _check_ranges(spec, {**spec.defaults, **config})
    if config.get("kl_coef", 0.0) > 0 and "ref_logprobs" in spec.optional:
        optional = tuple(key for key in spec.optional if key != "ref_logprobs")
        return dataclasses.replace(spec, required=(*spec.required, "ref_logprobs"), optional=optional)
    if not backward and spec.forward_needs is not None:
        spared = tuple(key for key in spec.required if key not in spec.forward_needs)
        return dataclasses.replace(spec, required=spec.forward_needs, optional=(*spared, *spec.optional))
    return spec


def check_output(spec: LossSpec, *, adapter: str, has_value_head: bool) -> None:
    """Refuses a loss of values where there is no value head to give them."""
    if spec.output != "values":
        return
    if not has_value_head:
        raise InvalidInput(
            "this run has no value head", field="loss_fn", hint="create the run with value_head=True for this loss"
        )
    if adapter == "base":
        raise InvalidInput("the base model has no value head", field="adapter", hint="use 'current' or 'start'")


def check_num_data(spec: LossSpec, num_data: int, *, field: str) -> None:
    """Refuses a batch without data, or one that does not consist of whole pairs where the loss takes pairs."""
    if not num_data:
        raise InvalidInput("no data", field=field)
    if num_data % spec.num_data:
        raise InvalidInput(
            f"{num_data} data are not pairs", field=field, hint="the loss takes chosen, rejected, chosen, rejected, …"
        )


def check_datum(
    spec: LossSpec,
    tokens_T: IntArray,
    inputs: Mapping[str, Array],
    *,
    vocab_size: int,
    max_seq_len: int,
    field: str,
) -> None:
    """Refuses one datum that the loss cannot take.

    Raises:
        InvalidInput: naming the datum and the key.
    """
    check_tokens(tokens_T, vocab_size=vocab_size, max_seq_len=max_seq_len, field=f"{field}.model_input")
    known = (*spec.required, *spec.optional)
    for key in spec.required:
        if key not in inputs:
            raise InvalidInput(
                f"missing {key!r}",
                field=f"{field}.loss_fn_inputs",
                hint=f"needed: {', '.join(spec.required)}",
            )
    for key, array in inputs.items():
        where = f"{field}.loss_fn_inputs.{key}"
        if key not in known:
            raise InvalidInput(f"unknown input {key!r}", field=where, hint=f"taken: {', '.join(known)}")
        _check_shape(spec, key, array, num_tokens=len(tokens_T), field=where)
        _check_values(key, array, vocab_size=vocab_size, field=where)
    if spec.output == "values":
        _check_values_given(inputs, field=f"{field}.loss_fn_inputs")
        return
    _check_bounds(inputs, field=f"{field}.loss_fn_inputs")
    targets, weights = inputs["target_tokens"], inputs.get("weights")
    if weights is not None and weights.shape != targets.shape:
        raise InvalidInput(
            f"shape {list(weights.shape)} differs from target_tokens' {list(targets.shape)}",
            field=f"{field}.loss_fn_inputs.weights",
        )
    if spec.grouping != "token":
        _check_sequence(spec, targets, weights, inputs.get("sequence_ratio_mask"), field=f"{field}.loss_fn_inputs")


def check_adapter(adapter: str, *, backward: bool) -> None:
    """Refuses a name that stands for no weights, and one of weights that are not trained in a backward pass."""
    if adapter not in ADAPTERS:
        raise InvalidInput(f"no adapter {adapter!r}", field="adapter", hint=f"one of {', '.join(ADAPTERS)}")
    if backward and adapter != "current":
        raise InvalidInput(f"{adapter!r} takes no gradient", field="adapter", hint="use forward")


def check_tokens(tokens_T: IntArray, *, vocab_size: int, max_seq_len: int, field: str) -> None:
    """Refuses token ids [T] that are empty, too many, or outside the vocabulary."""
    if len(tokens_T) == 0:
        raise InvalidInput("no tokens", field=field)
    if len(tokens_T) > max_seq_len:
        raise InvalidInput(f"{len(tokens_T)} tokens, at most {max_seq_len} are possible", field=field)
    check_vocabulary(tokens_T, np.ones(len(tokens_T), dtype=bool), vocab_size, field)


def _check_ranges(spec: LossSpec, settings: Mapping[str, float]) -> None:
    if settings["normalizer"] <= 0:
        raise InvalidInput(f"{settings['normalizer']} is not positive", field="loss_fn_config.normalizer")
    if settings.get("kl_coef", 0.0) < 0:
        raise InvalidInput(f"{settings['kl_coef']} is negative", field="loss_fn_config.kl_coef")
    if spec.grouping == "pair" and settings["beta"] <= 0:
        raise InvalidInput(f"{settings['beta']} is not positive", field="loss_fn_config.beta")
    if not 0 <= settings.get("label_smoothing", 0.0) <= 0.5:
        raise InvalidInput(
            f"{settings['label_smoothing']} is not between 0 and 0.5", field="loss_fn_config.label_smoothing"
        )
    for key in ("clip", "coef", "alpha"):
        if settings.get(key, 0.0) < 0:
            raise InvalidInput(f"{settings[key]} is negative", field=f"loss_fn_config.{key}")
    low, high = settings.get("clip_low_threshold", -math.inf), settings.get("clip_high_threshold", math.inf)
    if low > high:
        raise InvalidInput(f"{low} is above clip_high_threshold {high}", field="loss_fn_config.clip_low_threshold")


def _check_sequence(spec: LossSpec, targets: Array, weights: Array | None, mask: Array | None, *, field: str) -> None:
    """What a loss over whole sequences needs of one: something to compare, something to average over."""
    active = (targets != IGNORE_INDEX) & (weights != 0 if weights is not None else True)
    if spec.grouping == "pair" and not active.any():
        raise InvalidInput("no token has a target and a weight", field=f"{field}.target_tokens")
    if mask is not None and active.any() and not (active & (mask != 0)).any():
        raise InvalidInput("selects no token that has a target and a weight", field=f"{field}.sequence_ratio_mask")


def _check_values_given(inputs: Mapping[str, Array], *, field: str) -> None:
    """Returns and the old values are compared: one without the other says nothing."""
    for key, other in (("returns", "values"), ("values", "returns")):
        if key in inputs and other not in inputs:
            raise InvalidInput(f"missing {other!r}", field=field, hint=f"needed beside {key}")


def _check_bounds(inputs: Mapping[str, Array], *, field: str) -> None:
    low, high = (inputs.get(key) for key in BOUND_INPUTS)
    if low is not None and high is not None and (above := np.flatnonzero(low > high)).size:
        raise InvalidInput(
            f"{low[above[0]]} at position {above[0]} is above clip_high_threshold {high[above[0]]}",
            field=f"{field}.clip_low_threshold",
        )


def _check_shape(spec: LossSpec, key: str, array: Array, *, num_tokens: int, field: str) -> None:
    may_be_2d = spec.allows_topk and key in ("target_tokens", "weights")
    if array.ndim != 1 and not (may_be_2d and array.ndim == 2 and array.shape[1] > 0):
        expected = "[T] or [T, K]" if may_be_2d else "[T]"
        raise InvalidInput(f"shape {list(array.shape)}, expected {expected}", field=field)
    if len(array) != num_tokens:
        raise InvalidInput(f"length {len(array)} differs from the model input's length {num_tokens}", field=field)


def _check_values(key: str, array: Array, *, vocab_size: int, field: str) -> None:
    if key in INT_INPUTS:
        if not np.issubdtype(array.dtype, np.integer):
            raise InvalidInput("must be int64", field=field)
        check_vocabulary(array, array != IGNORE_INDEX, vocab_size, field)
        return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        position = tuple(int(i) for i in bad[0])
        raise InvalidInput(f"{array[position]} at position {position[0]} is not a finite number", field=field)
    if key in MASK_INPUTS and not np.isin(array, (0, 1)).all():
        raise InvalidInput("must be 0 or 1 everywhere", field=field)


def check_vocabulary(ids: Array | IntArray, active: np.ndarray, vocab_size: int, field: str) -> None:
    """Refuses ids outside the vocabulary, where they are `active`."""
    outside = np.argwhere(active & ((ids < 0) | (ids >= vocab_size)))
    if len(outside):
        position = tuple(int(i) for i in outside[0])
        raise InvalidInput(
            f"token {int(ids[position])} at position {position[0]} is outside the vocabulary of {vocab_size}",
            field=field,
        )
