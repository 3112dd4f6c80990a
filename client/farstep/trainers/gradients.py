"""`Gradients`: from a batch to an optimizer step, on either of two ways.

A named loss is one pass, with its gradient. Where `loss`, `forward` or `backward` is overridden or hooked, or the loss
is a function, log-probabilities come here first, and what the loss says of each goes back (`own_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from farstep.errors import InvalidInputError
from farstep.future import Future
from farstep.results import ForwardBackwardOutput
from farstep.trainers.hooks import hooked
from farstep.trainers.horizon import chunks
from farstep.trainers.metrics import joined
from farstep.trainers.own_loss import Part, Tape, checked_loss, import_torch, leaf_logprobs, weighted_data
from farstep.trainers.reports import Reports
from farstep.trainers.sequence import TrainSequence
from farstep.trainers.step import OwnLoss, PendingUpdate
from farstep.types import AdamParams, Datum
from farstep_proto.loss_table import LOSS_TABLE

if TYPE_CHECKING:
    import torch

Batch = list[TrainSequence]
LossFunction = Callable[..., Any]
_OPEN = ("loss", "forward", "backward")


class Gradients(Reports):
    """Of a trainer.

    `loss_fn` is a named loss, or a function of (batch, log-probabilities [T] of each row) that gives a loss or a loss
    and metrics. `loss_inputs` are the per-token fields of a row that the named loss takes.
    """

    loss_fn: str | LossFunction = "cross_entropy"
    loss_inputs: Sequence[str] = ()
    _overridden: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tape = Tape()
        self._present_loss: str | LossFunction = self.loss_fn
        self._own_metrics: dict[str, float] = {}
        self._under_way = 0  # optimizer steps that are submitted and not counted yet

    @hooked
    def loss(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch: a scalar tensor that depends on what `forward` gave. Here: the trainer's own loss.

        The named loss is one number from the worker; what is added to it or multiplied with it counts in the gradient.
        """
        loss_fn = self._present_loss
        if not callable(loss_fn):
            return self._named_loss(batch, loss_fn)
        result = loss_fn(batch, self.forward(batch))
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        self._own_metrics = {str(name): float(value) for name, value in metrics.items()}
        return loss  # type: ignore[no-any-return]

    @hooked
    def forward(self, batch: Batch) -> list[torch.Tensor]:
        """Log-probabilities of the tokens of each row, from the worker: leaf tensors [T], 0 where `loss_mask` is 0."""
        self._require_init("forward")
        import_torch()
        parts = chunks(batch, self.config.mini_bs)
        passes = [self.client.forward([row.to_datum(weights=False) for row in part]) for part in parts]
        leaves = leaf_logprobs(batch, [each.result() for each in passes])

        def submit(leaves: list[torch.Tensor]) -> list[Future[ForwardBackwardOutput]]:
            data = weighted_data(batch, leaves)
            return [self.client.forward_backward(part) for part in chunks(data, self.config.mini_bs)]

        self._tape.add(Part(leaves, submit))
        return leaves

    @hooked
    def backward(self, loss: torch.Tensor) -> None:
        """Differentiates the loss by what `forward` gave, and has the worker add the gradient to the run's."""
        self._tape.backward(loss)

    def optim_step(self) -> dict[str, float]:
        """An optimizer step on what `backward` added, for a `step` of one's own: it counts, `step` reports."""
        self._require_init("optim_step")
        tape, self._tape = self._tape, Tape()
        metrics = self._update(tape.passes, [], None).result()
        self._count_updates(1)
        return metrics

    # What a loss needs

    def loss_config(self) -> Mapping[str, float]:
        """Settings of the named loss."""
        return {}

    def normalizer(self, batch: Sequence[TrainSequence]) -> float:
        """What the sum over the rows of an optimizer step is divided by: here the weight of its tokens, for a mean."""
        return sum(row.weight for row in batch) or 1.0

    def adam_params(self, step: int) -> AdamParams:
        """Settings of optimizer step number `step`, counted from 0."""
        wanted = self.config.optimizer
        return AdamParams(
            learning_rate=wanted.lr * self.schedule(step),
            beta1=wanted.betas[0],
            beta2=wanted.betas[1],
            eps=wanted.eps,
            weight_decay=wanted.weight_decay,
            grad_clip_norm=wanted.grad_clip,
        )

    # The two ways

    def _submit_named(self, group: list[Batch], loss_fn: Any) -> PendingUpdate:
        rows = [row for part in group for row in part]
        settings = {**self._settings_of(loss_fn), "normalizer": self.normalizer(rows)}
        passes = [self.client.forward_backward(self._data(part, loss_fn), loss_fn, settings) for part in group]
        return self._update(passes, rows, None)

    def _submit_open(self, group: list[Batch], loss_fn: str | LossFunction) -> PendingUpdate:
        rows = [row for part in group for row in part]
        self._tape, self._present_loss, self._own_metrics = Tape(), loss_fn, {}
        loss = self.loss(rows)
        own = OwnLoss(checked_loss(loss), self._own_metrics)
        self.backward(loss)
        tape, self._tape, self._present_loss = self._tape, Tape(), self.loss_fn
        return self._update(tape.passes, rows, own)

    def _update(
        self, passes: Sequence[Future[ForwardBackwardOutput]], rows: Batch, own: OwnLoss | None
    ) -> PendingUpdate:
        params = self.adam_params(self._submitted)
        update = PendingUpdate(params.learning_rate, passes, self.client.optim_step(params), rows, own)
        self._under_way += 1
        return update

    @property
    def _submitted(self) -> int:
        return self.global_step + self._under_way

    def _count_updates(self, number: int) -> None:
        self._under_way -= number
        self.global_step += number
        self.global_step_this_run += number

    def _data(self, rows: Batch, loss_fn: str) -> list[Datum]:
        names: Sequence[str] = self.loss_inputs
        if loss_fn != self.loss_fn and loss_fn in LOSS_TABLE:
            names = [name for name in LOSS_TABLE[loss_fn].required if name != "target_tokens"]
        return [row.to_datum(*names) for row in rows]

    def _settings_of(self, loss_fn: str) -> Mapping[str, float]:
        """The trainer's, of its own loss; of another one those that this one has, too."""
        settings = self.loss_config()
        if loss_fn == self.loss_fn or loss_fn not in LOSS_TABLE:
            return settings
        return {name: value for name, value in settings.items() if name in LOSS_TABLE[loss_fn].defaults}

    def _named_loss(self, batch: Batch, loss_fn: str) -> torch.Tensor:
        tensor = import_torch().tensor
        normalizer = self.normalizer(batch)
        parts = [
            self._data(part, loss_fn) for part in chunks(batch, self.config.mini_bs, rows_per_group=self.rows_per_group)
        ]

        def settings(scale: float) -> dict[str, float]:
            return {**self._settings_of(loss_fn), "normalizer": normalizer / scale}

        passes = [self.client.forward(part, loss_fn, settings(1.0)) for part in parts]
        metrics = joined([dict(each.result().metrics) for each in passes])
        leaf: torch.Tensor = tensor(np.float64(metrics.pop("loss")), requires_grad=True)
        self._own_metrics.update(metrics)

        def submit(leaves: list[torch.Tensor]) -> list[Future[ForwardBackwardOutput]]:
            gradient = leaves[0].grad
            scale = float(gradient.item()) if gradient is not None else 0.0
            if scale < 0:
                raise InvalidInputError("a named loss cannot be trained upwards", field="loss",
                                        hint="make it of self.forward(batch) instead")  # fmt: skip
            return [self.client.forward_backward(part, loss_fn, settings(scale)) for part in parts] if scale else []

        self._tape.add(Part([leaf], submit))
        return leaf

    @property
    def has_own_loss(self) -> bool:
        return self._is_open(self.loss_fn)

    @property
    def named_loss(self) -> str:
        assert isinstance(self.loss_fn, str)
        return self.loss_fn

    def _is_open(self, loss_fn: str | LossFunction) -> bool:
        return (
            callable(loss_fn)
            or bool(self._overridden.intersection(_OPEN))
            or any(self.hooks_of(when, name) for when in ("pre", "post") for name in _OPEN)
        )
