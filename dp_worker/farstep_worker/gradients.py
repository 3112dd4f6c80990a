"""Passes over a batch: log-probabilities or values, loss, and gradients into tensors of their own.

A pass goes by micro-batches. Only positions that someone asks about reach the output layer (or the value head), and
only those with a weight are differentiated.

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
from farstep_model.value_head import ValueHead
from farstep_proto.errors import ModelError
from farstep_proto.loss_table import LOSS_TABLE
from farstep_worker.micro_batch import MicroBatch, plan
from farstep_worker.phases import Phases
from farstep_worker.submission import Pass


@dataclass(frozen=True, slots=True, eq=False)
class PassResult:
    """`outputs[i]` are datum i's log-probabilities or values, as its loss has them: as long as its targets, [T] or
    [T, K], and 0 where the target is ignored.

    `gradients` are aligned with the adapter's parameters: None for one that the loss cannot reach, and altogether for
    a forward pass alone.
    """

    loss_sum: float
    num_active: int
    metrics: Mapping[str, float]
    outputs: list[np.ndarray]
    gradients: list[Tensor | None] | None


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
    outputs = [np.zeros(example.inputs["target_tokens"].shape, dtype=np.float32) for example in call.examples]
    reached = adapter.reached_by(LOSS_TABLE[call.loss_fn].output)
    parameters = [parameter for parameter, is_reached in zip(adapter.parameters(), reached, strict=True) if is_reached]
    total = _Total([torch.zeros_like(parameter) for parameter in parameters] if call.backward else None)
    if call.backward and adapter.spec.dropout > 0:
        torch.manual_seed(dropout_seed)
    grad_mode = torch.enable_grad() if call.backward else torch.no_grad()
    num_together = LOSS_TABLE[call.loss_fn].num_data
    with layers.active([None if adapter_off else adapter]), layers.training(call.backward), grad_mode:
        for indices in plan(call.examples, token_budget, num_together=num_together):
            with phases.measure("forward"):
                batch = MicroBatch.of(call.examples, indices, device=layers.base.device)
                result = _run_micro_batch(adapter, call, batch, outputs, adapter_off=adapter_off)
                total.add(result)
            if total.gradients is not None and result.num_active:
                with phases.measure("backward"):
                    gradients = torch.autograd.grad(result.loss_sum, parameters, materialize_grads=True)
                    _check_finite(gradients, indices)
                    torch._foreach_add_(total.gradients, gradients)
    aligned = None if total.gradients is None else _aligned(total.gradients, reached)
    return PassResult(total.loss_sum, total.num_active, combine_metrics(total.metrics), outputs, aligned)


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


def _aligned(gradients: Sequence[Tensor], reached: Sequence[bool]) -> list[Tensor | None]:
    """One for each parameter, from those of the parameters that were reached."""
    remaining = iter(gradients)
    return [next(remaining) if is_reached else None for is_reached in reached]


def _run_micro_batch(
    adapter: Adapter, call: Pass, batch: MicroBatch, outputs: list[np.ndarray], *, adapter_off: bool
) -> LossResult:
    base, spec = adapter.layers.base, LOSS_TABLE[call.loss_fn]
    hidden_ND = base.hidden_states(batch.token_ids).flatten(0, 1).index_select(0, batch.positions)
    targets = batch.inputs["target_tokens"].clamp_min(0)
    weighted, rest = slice(None, batch.num_weighted), slice(batch.num_weighted, None)
    entropy = None
    if spec.output == "values":
        found, found_rest = _values(adapter, hidden_ND, is_fresh=adapter_off).tensor_split([batch.num_weighted])
    else:
        with_entropy = "advantages" in spec.required
        found, entropy = token_logprobs(base, hidden_ND[weighted], targets[weighted], with_entropy=with_entropy)
        with torch.no_grad():
            found_rest, _ = token_logprobs(base, hidden_ND[rest], targets[rest])
    batch.scatter(torch.cat([found.detach(), found_rest.detach()]), outputs)
    inputs = {key: tensor[weighted] for key, tensor in batch.inputs.items()}
    sequences = None
    if spec.grouping != "token":
        sequences = Sequences(torch.from_numpy(batch.rows[weighted]).to(base.device), len(batch.indices))
    result = compute_loss(
        call.loss_fn, call.config, logprobs=found, inputs=inputs, sequences=sequences, entropy_N=entropy
    )
    if not math.isfinite(result.loss_sum.item()):
        raise _non_finite_loss(call, batch, found.detach(), inputs)
    return result


def _values(adapter: Adapter, hidden_ND: Tensor, *, is_fresh: bool) -> Tensor:
    """[N]. With the adapter as it was when nothing was trained yet, the head is so, too: it gives 0."""
    assert adapter.value_head is not None, "checked where the pass was submitted"
    head = ValueHead.fresh(adapter.layers.base) if is_fresh else adapter.value_head
    return head.values(hidden_ND)


def _check_finite(gradients: Sequence[Tensor], indices: Sequence[int]) -> None:
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        where = ", ".join(f"data[{index}]" for index in sorted(indices))
        raise ModelError(
            f"the gradient's norm is {norm}, in a micro-batch of {where}",
            error_class="NonFiniteError",
            field=f"data[{indices[0]}]" if len(indices) == 1 else "data",
        )


def _non_finite_loss(call: Pass, batch: MicroBatch, found: Tensor, inputs: Mapping[str, Tensor]) -> ModelError:
    rows_N = torch.from_numpy(batch.rows[: batch.num_weighted]).to(found.device)
    num_together = LOSS_TABLE[call.loss_fn].num_data
    for row in range(0, len(batch.indices), num_together):
        mine = (rows_N >= row) & (rows_N < row + num_together)
        own = {key: tensor[mine] for key, tensor in inputs.items()}
        sequences = Sequences(rows_N[mine] - row, num_together)
        result = compute_loss(call.loss_fn, call.config, logprobs=found[mine], inputs=own, sequences=sequences)
        loss = result.loss_sum.item()
        if not math.isfinite(loss):
            field = f"data[{batch.indices[row]}]"
            return ModelError(f"the loss is {loss}", error_class="NonFiniteError", field=field)
    return ModelError("the sum of the losses is not finite", error_class="NonFiniteError", field="data")
