"""Passes over a batch: log-probabilities, loss, and gradients into tensors of their own.

A pass goes by micro-batches. Only positions that someone asks about reach the output layer, and only those with a
weight are differentiated.

Invariant: a pass changes nothing. Whoever asked adds the gradients when the whole pass has succeeded.

Shapes: N positions of a micro-batch with a target, K candidates, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.logprobs import token_logprobs
from farstep_model.losses import LossResult, compute_loss
from farstep_model.metrics import combine_metrics
from farstep_model.sequences import Sequences
from farstep_proto.errors import ModelError
from farstep_proto.loss_table import LOSS_TABLE
from farstep_worker.micro_batch import MicroBatch, plan
from farstep_worker.phases import Phases
from farstep_worker.submission import Pass


@dataclass(frozen=True, slots=True, eq=False)
class PassResult:
    """`logprobs[i]` is as long as datum i's targets, [T] or [T, K], and 0 where the target is ignored.

    `gradients` are aligned with the adapter's parameters; None for a forward pass alone.
    """

    loss_sum: float
    num_active: int
    metrics: Mapping[str, float]
    logprobs: list[np.ndarray]
    gradients: list[Tensor] | None


def run_pass(
    adapter: Adapter,
    call: Pass,
    *,
    token_budget: int,
    dropout_seed: int,
    adapter_off: bool = False,
    phases: Phases | None = None,
) -> PassResult:
    """Computes a whole batch with one adapter, or by the base model alone; dropout applies in a backward pass only.

    Raises:
        ModelError: a loss or gradient that is not finite, naming the datum where one can be named.
    """
    layers, phases = adapter.layers, phases or Phases()
    logprobs = [np.zeros(example.inputs["target_tokens"].shape, dtype=np.float32) for example in call.examples]
    total = _Total([torch.zeros_like(parameter) for parameter in adapter.parameters()] if call.backward else None)
    if call.backward and adapter.spec.dropout > 0:
        torch.manual_seed(dropout_seed)
    grad_mode = torch.enable_grad() if call.backward else torch.no_grad()
    num_together = LOSS_TABLE[call.loss_fn].num_data
    with layers.active([None if adapter_off else adapter]), layers.training(call.backward), grad_mode:
        for indices in plan(call.examples, token_budget, num_together=num_together):
            with phases.measure("forward"):
                batch = MicroBatch.of(call.examples, indices, device=layers.base.device)
                result = _run_micro_batch(adapter, call, batch, logprobs)
                total.add(result)
            if total.gradients is not None and result.num_active:
                with phases.measure("backward"):
                    gradients = torch.autograd.grad(result.loss_sum, adapter.parameters(), materialize_grads=True)
                    _check_finite(gradients, indices)
                    torch._foreach_add_(total.gradients, gradients)
    return PassResult(total.loss_sum, total.num_active, combine_metrics(total.metrics), logprobs, total.gradients)


@dataclass(slots=True, eq=False)
class _Total:
    """What the micro-batches came to so far."""

    gradients: list[Tensor] | None
    loss_sum: float = 0.0
    num_active: int = 0
    metrics: list[Mapping[str, float]] = field(default_factory=list)

    def add(self, result: LossResult) -> None:
        self.loss_sum += result.loss_sum.item()
        self.num_active += result.num_active
        self.metrics.append(dict(zip(result.metrics, torch.stack(list(result.metrics.values())).tolist(), strict=True)))


def _run_micro_batch(adapter: Adapter, call: Pass, batch: MicroBatch, outputs: list[np.ndarray]) -> LossResult:
    base = adapter.layers.base
    hidden_ND = base.hidden_states(batch.token_ids).flatten(0, 1).index_select(0, batch.positions)
    targets = batch.inputs["target_tokens"].clamp_min(0)
    weighted, rest = slice(None, batch.num_weighted), slice(batch.num_weighted, None)
    with_entropy = "advantages" in LOSS_TABLE[call.loss_fn].required
    logprobs, entropy = token_logprobs(base, hidden_ND[weighted], targets[weighted], with_entropy=with_entropy)
    with torch.no_grad():
        rest_logprobs, _ = token_logprobs(base, hidden_ND[rest], targets[rest])
    batch.scatter(torch.cat([logprobs.detach(), rest_logprobs]), outputs)
    inputs = {key: tensor[weighted] for key, tensor in batch.inputs.items()}
    sequences = None
    if LOSS_TABLE[call.loss_fn].grouping != "token":
        sequences = Sequences(torch.from_numpy(batch.rows[weighted]).to(base.device), len(batch.indices))
    result = compute_loss(
        call.loss_fn, call.config, logprobs=logprobs, inputs=inputs, sequences=sequences, entropy_N=entropy
    )
    if not math.isfinite(result.loss_sum.item()):
        raise _non_finite_loss(call, batch, logprobs.detach(), inputs)
    return result


def _check_finite(gradients: Sequence[Tensor], indices: Sequence[int]) -> None:
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        where = ", ".join(f"data[{index}]" for index in sorted(indices))
        raise ModelError(
            f"the gradient's norm is {norm}, in a micro-batch of {where}",
            error_class="NonFiniteError",
            field=f"data[{indices[0]}]" if len(indices) == 1 else "data",
        )


def _non_finite_loss(call: Pass, batch: MicroBatch, logprobs: Tensor, inputs: Mapping[str, Tensor]) -> ModelError:
    rows_N = torch.from_numpy(batch.rows[: batch.num_weighted]).to(logprobs.device)
    num_together = LOSS_TABLE[call.loss_fn].num_data
    for row in range(0, len(batch.indices), num_together):
        mine = (rows_N >= row) & (rows_N < row + num_together)
        own = {key: tensor[mine] for key, tensor in inputs.items()}
        sequences = Sequences(rows_N[mine] - row, num_together)
        result = compute_loss(call.loss_fn, call.config, logprobs=logprobs[mine], inputs=own, sequences=sequences)
        loss = result.loss_sum.item()
        if not math.isfinite(loss):
            field = f"data[{batch.indices[row]}]"
            return ModelError(f"the loss is {loss}", error_class="NonFiniteError", field=field)
    return ModelError("the sum of the losses is not finite", error_class="NonFiniteError", field="data")
