"""Where a datum's targets came from: runs of tokens of a prompt, and runs that a model sampled.

The loss `stable_reinforce` is of sampled tokens alone, and the runs say which these are. The sequences that they name
are not looked up: nothing about them was kept when they were sampled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import tensor_from_proto, tensor_to_proto
from farstep_proto.v1 import common_pb2, tinker_pb2


def sampled_weights(datum: tinker_pb2.Datum, ours: common_pb2.Datum, *, field: str) -> common_pb2.Tensor:
    """Weights [T]: as they were given, or 1, where a target was sampled, and 0 elsewhere.

    Args:
        ours: the same datum, translated but for its spans.

    Raises:
        InvalidInput: the runs do not make up the targets, or a token that nobody sampled has an advantage.
    """
    inputs = {
        key: tensor_from_proto(ours.loss_fn_inputs[key], field=f"{field}.loss_fn_inputs.{key}")
        for key in ("target_tokens", "advantages", "weights")
        if key in ours.loss_fn_inputs
    }
    if "target_tokens" not in inputs:
        raise InvalidInput("missing 'target_tokens'", field=f"{field}.loss_fn_inputs")
    num_targets = len(inputs["target_tokens"])
    for key, array in inputs.items():
        if array.shape != (num_targets,):
            raise InvalidInput(
                f"shape {list(array.shape)}, expected [{num_targets}]", field=f"{field}.loss_fn_inputs.{key}"
            )
    is_sampled_T = _is_sampled(datum, num_targets, field=f"{field}.loss_fn_input_spans")
    outside = np.flatnonzero(~is_sampled_T & (inputs.get("advantages", np.zeros(num_targets)) != 0))
    if len(outside):
        raise InvalidInput(
            f"position {outside[0]} has an advantage and was not sampled", field=f"{field}.loss_fn_inputs.advantages"
        )
    weights_T = inputs.get("weights", np.ones(num_targets, dtype=np.float32))
    return tensor_to_proto(np.where(is_sampled_T, weights_T, 0).astype(np.float32))


def _is_sampled(datum: tinker_pb2.Datum, num_targets: int, *, field: str) -> npt.NDArray[np.bool_]:
    kinds, lengths = [], []
    for index, span in enumerate(datum.loss_fn_input_spans):
        kind = span.WhichOneof("span")
        if kind is None:
            raise InvalidInput("a span of no known kind", field=f"{field}[{index}]")
        run = span.sampled_tokens if kind == "sampled_tokens" else span.prompt_tokens
        if run.length < 0 or run.offset < 0:
            raise InvalidInput("offset and length cannot be negative", field=f"{field}[{index}]")
        kinds.append(kind == "sampled_tokens")
        lengths.append(run.length)
    if sum(lengths) != num_targets:
        raise InvalidInput(f"they cover {sum(lengths)} positions of {num_targets}", field=field)
    return np.repeat(np.array(kinds, dtype=bool), lengths)
