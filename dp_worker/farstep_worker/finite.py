"""Whether what a micro-batch came to is finite, and if not, whose fault it is.

Looked at once a pass, when everything is computed: on a GPU each look is a wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from farstep_model.losses import compute_loss
from farstep_model.sequences import Sequences
from farstep_proto.errors import ModelError
from farstep_worker.micro_batch import MicroBatch
from farstep_worker.submission import Pass


def check_loss(loss_sum: float, call: Pass, batch: MicroBatch, logprobs: Tensor) -> None:
    """Of a micro-batch, with the log-probabilities or values [N] or [N, K] that it comes from.

    Raises:
        ModelError: it is not finite; names the datum, or the first of its pair, where one alone is not.
    """
    if math.isfinite(loss_sum):
        return
    inputs, rows_N = batch.weighted_inputs(), batch.sequences().ids
    logprobs = logprobs[: batch.num_weighted]
    num_together = call.spec.num_data
    for row in range(0, len(batch.indices), num_together):
        mine = (rows_N >= row) & (rows_N < row + num_together)
        own = {key: tensor[mine] for key, tensor in inputs.items()}
        sequences = Sequences(rows_N[mine] - row, num_together)
        result = compute_loss(
            call.loss_fn,
            call.config,
            logprobs=logprobs[mine],
            inputs=own,
            sequences=sequences,
            custom=call.custom,
        )
        loss = result.loss_sum.item()
        if not math.isfinite(loss):
            field = f"data[{batch.indices[row]}]"
            raise ModelError(f"the loss is {loss}", error_class="NonFiniteError", field=field)
    raise ModelError("the sum of the losses is not finite", error_class="NonFiniteError", field="data")


def check_gradient_norm(norm: float, indices: Sequence[int]) -> None:
    """Raises ModelError if it is not finite."""
    if not math.isfinite(norm):
        where = ", ".join(f"data[{index}]" for index in sorted(indices))
        raise ModelError(
            f"the gradient's norm is {norm}, in a micro-batch of {where}",
            error_class="NonFiniteError",
            field=f"data[{indices[0]}]" if len(indices) == 1 else "data",
        )
