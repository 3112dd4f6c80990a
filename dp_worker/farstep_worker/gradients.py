"""Passes over a batch: log-probabilities or values, loss, and gradients into tensors of their own.

A pass goes by micro-batches. Only positions that someone asks about reach the output layer (or the value head), and
only those with a weight are differentiated. A micro-batch that memory does not suffice for is computed again in two
halves. What came of the micro-batches is looked at when all are done, so that a GPU is never waited for in between.

Invariant: a pass changes nothing. Whoever asked adds the gradients when the whole pass has succeeded.

Shapes: N positions of a micro-batch with a target, K candidates, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.losses import LossResult, compute_loss
from farstep_model.packed import Layout
from farstep_proto.errors import ModelError
from farstep_proto.metrics import combine_metrics
from farstep_worker.device import Device, device_at, is_out_of_memory
from farstep_worker.finite import check_gradient_norm, check_loss
from farstep_worker.micro_batch import MicroBatch, halves, num_tokens, plan
from farstep_worker.phases import Phases
from farstep_worker.subject import Subject
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
    layout: Layout = "padded",
    adapter_off: bool = False,
    phases: Phases | None = None,
    on_out_of_memory: Callable[[int], None] | None = None,
) -> PassResult:
    """Computes a whole batch with one adapter, or by the base model alone; dropout applies in a backward pass only.

    Dropout's masks depend on the seed and on how the data is cut. Where a micro-batch was split for lack of memory they
    are those of a pass that was planned with its halves: what the failed attempt drew is put back.

    Args:
        layout: "packed" only where `farstep_model.packed` has enabled it.
        on_out_of_memory: hears of each micro-batch that had to be split, with its number of tokens.

    Raises:
        ModelError: a loss or gradient that is not finite, naming the datum where one can be named; or too little
            memory for one datum, or one pair, alone.
    """
    layers, phases = adapter.layers, phases or Phases()
    device = device_at(layers.base.device)
    subject = Subject(adapter, call.spec, is_off=adapter_off)
    total = Total([torch.zeros_like(parameter) for parameter in subject.parameters()] if call.backward else None)
    draws = call.backward and adapter.spec.dropout > 0
    if draws:
        torch.manual_seed(dropout_seed)
    grad_mode = torch.enable_grad() if call.backward else torch.no_grad()
    num_together = call.spec.num_data
    with layers.active([None if adapter_off else adapter]), layers.training(call.backward), grad_mode:
        pending = deque(plan(call.examples, token_budget, num_together=num_together, layout=layout))
        while pending:
            indices = pending.popleft()
            state = device.random_state() if draws else None
            found = _attempt(subject, call, indices, layout=layout, device=device, phases=phases)
            if isinstance(found, Part):
                total.add(found)
                continue
            parts = halves(indices, num_together=num_together)
            if len(parts) == 1:
                raise _too_large(call, indices, found)
            if on_out_of_memory is not None:
                on_out_of_memory(num_tokens(call.examples, indices, layout))
            if state is not None:
                device.set_random_state(state)
            pending.extendleft(reversed(parts))
    with phases.measure("backward" if call.backward else "forward"):
        return total.result(subject, call)


@dataclass(slots=True, eq=False)
class Part:
    """What a micro-batch came to, on its device: `outputs` [N] or [N, K], scalars, and gradients of its own."""

    batch: MicroBatch
    outputs: Tensor
    loss: LossResult
    gradient_norm: Tensor
    gradients: tuple[Tensor, ...] | None

    @classmethod
    def of(cls, batch: MicroBatch, outputs: Tensor, loss: LossResult, gradients: tuple[Tensor, ...] | None) -> Part:
        detached = loss.loss_sum.detach()
        norm = torch.zeros_like(detached) if gradients is None else torch.nn.utils.get_total_norm(gradients)
        return cls(batch, outputs, dataclasses.replace(loss, loss_sum=detached), norm, gradients)


@dataclass(slots=True, eq=False)
class Total:
    """What the micro-batches came to so far."""

    gradients: list[Tensor] | None
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        if self.gradients is not None and part.gradients is not None:
            torch._foreach_add_(self.gradients, part.gradients)
        part.gradients = None
        self.parts.append(part)

    def result(self, subject: Subject, call: Pass) -> PassResult:
        """On the host; raises ModelError where something is not finite."""
        outputs = [np.zeros(example.inputs["target_tokens"].shape, dtype=np.float32) for example in call.examples]
        loss_sum, num_active, metrics = 0.0, 0, []
        for part in self.parts:
            scalars = [part.loss.loss_sum, part.gradient_norm, *part.loss.metrics.values()]
            loss, norm, *values = torch.stack(scalars).tolist()
            check_loss(loss, call, part.batch, part.outputs)
            check_gradient_norm(norm, part.batch.indices)
            part.batch.scatter(part.outputs, outputs)
            loss_sum += loss
            num_active += part.loss.num_active
            metrics.append(dict(zip(part.loss.metrics, values, strict=True)))
        gradients = None if self.gradients is None else subject.aligned(self.gradients)
        return PassResult(loss_sum, num_active, combine_metrics(metrics), outputs, gradients)


def _attempt(
    subject: Subject, call: Pass, indices: Sequence[int], *, layout: Layout, device: Device, phases: Phases
) -> Part | str:
    """One micro-batch; or, where memory ran out, what was said then, with all that it held given back."""
    try:
        return _compute(subject, call, indices, layout=layout, phases=phases)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error)
    # Not before: the error holds the frames that hold the tensors.
    device.give_back()
    return said


def _compute(subject: Subject, call: Pass, indices: Sequence[int], *, layout: Layout, phases: Phases) -> Part:
    base = subject.adapter.layers.base
    with phases.measure("forward"):
        batch = MicroBatch.of(call.examples, indices, device=base.device, layout=layout)
        loss, outputs = loss_of(subject, call, batch, batch.hidden_states(base))
    if not call.backward or not batch.num_weighted:
        return Part.of(batch, outputs, loss, None)
    with phases.measure("backward"):
        gradients = torch.autograd.grad(loss.loss_sum, subject.parameters(), materialize_grads=True)
        return Part.of(batch, outputs, loss, gradients)


def loss_of(subject: Subject, call: Pass, batch: MicroBatch, hidden_ND: Tensor) -> tuple[LossResult, Tensor]:
    """From the last hidden states: the loss with its graph, and the log-probabilities or values without."""
    targets = batch.inputs["target_tokens"].clamp_min(0)
    weighted, rest, entropy = subject.outputs(hidden_ND, targets, num_weighted=batch.num_weighted)
    sequences = batch.sequences() if subject.spec.grouping != "token" else None
    loss = compute_loss(
        call.loss_fn,
        call.config,
        logprobs=weighted,
        inputs=batch.weighted_inputs(),
        sequences=sequences,
        entropy_N=entropy,
        num_active=batch.num_weighted,
        custom=call.custom,
    )
    return loss, torch.cat([weighted.detach(), rest])


def _too_large(call: Pass, indices: Sequence[int], said: str) -> ModelError:
    lengths = ", ".join(f"data[{index}] of {len(call.examples[index].tokens)} tokens" for index in sorted(indices))
    return ModelError(
        f"the device has too little memory for {lengths} alone: {said}",
        error_class="OutOfMemoryError",
        field=f"data[{min(indices)}]",
        hint="send shorter sequences, or start the trainer with --gradient-checkpointing",
    )
