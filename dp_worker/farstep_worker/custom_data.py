"""Inputs of a custom loss among those of a datum, and back.

They have names of their own choosing, among them such as mean something to every other loss. So they travel inside the
worker under a prefix, and nobody but their loss sees what they are.

Shapes: T tokens, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from farstep_proto.custom_loss import CustomLoss
from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import Array, tensor_from_proto
from farstep_proto.v1 import common_pb2
from farstep_proto.validation import check_vocabulary

PREFIX = "custom."


def read_inputs(
    given: Mapping[str, common_pb2.Tensor], custom: CustomLoss, num_tokens: int, *, vocab_size: int, field: str
) -> dict[str, Array]:
    """`target_tokens` and what the loss names, of the ranks that it says; a number becomes [T] of it.

    What it does not name is not looked at: the same data may be for several losses.

    Raises:
        InvalidInput: one is missing, of another shape, or a target is no token.
    """
    ranks = {"target_tokens": custom.ranks["logprobs"]} | {name: custom.ranks[name] for name in custom.input_names}
    arrays = {}
    for name, rank in ranks.items():
        if name not in given:
            raise InvalidInput(f"missing {name!r}", field=field, hint=f"needed: {', '.join(ranks)}")
        array = tensor_from_proto(given[name], field=f"{field}.{name}")
        arrays[name] = _of_rank(array, rank, num_tokens, field=f"{field}.{name}")
    targets = arrays["target_tokens"]
    if not np.issubdtype(targets.dtype, np.integer):
        raise InvalidInput("must be int64", field=f"{field}.target_tokens")
    check_vocabulary(targets, np.ones(targets.shape, dtype=bool), vocab_size, f"{field}.target_tokens")
    return {"target_tokens": targets} | {PREFIX + name: arrays[name] for name in custom.input_names}


def own_inputs(inputs: Mapping[str, Array], custom: CustomLoss) -> dict[str, Array]:
    """By the names and of the ranks that `read_inputs` was given."""
    own = {name: inputs[PREFIX + name] for name in custom.input_names}
    own |= {name: own[name][:1] for name, rank in custom.ranks.items() if rank == 0}
    return {"target_tokens": inputs["target_tokens"], **own}


def _of_rank(array: Array, rank: int, num_tokens: int, *, field: str) -> Array:
    if rank == 0 and array.size == 1:
        return np.full(num_tokens, array.reshape(1)[0], dtype=array.dtype)
    if rank == 0 or array.ndim != rank:
        raise InvalidInput(f"shape {list(array.shape)}, expected {['a number', '[T]', '[T, K]'][rank]}", field=field)
    if len(array) != num_tokens or array.size == 0:
        raise InvalidInput(f"shape {list(array.shape)} with {num_tokens} tokens in the model input", field=field)
    return array
