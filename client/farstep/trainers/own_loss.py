"""The open way to a gradient: log-probabilities come here as leaf tensors, a loss is made of them in torch, and what it
says of each goes back as a weight.

The worker differentiates −Σ w·p with w = −∂loss/∂p, whose gradient is the loss's by the chain rule. A named loss is a
leaf as well, one number L; what the loss says of it, c = ∂loss/∂L, scales the named loss's own pass. So the two may be
mixed. Needs torch.

Shapes: T tokens of a row; entry 0 is 0 and no gradient passes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep.errors import InvalidInputError, MissingExtraError
from farstep.future import Future
from farstep.results import ForwardBackwardOutput
from farstep.trainers.sequence import TrainSequence, aligned
from farstep.types import Datum
from farstep_proto.loss_table import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

Submit = Callable[[Sequence[Datum]], Future[ForwardBackwardOutput]]


def import_torch() -> Any:
    """Torch, or MissingExtraError."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("a loss of your own needs torch", hint="pip install torch") from error
    return torch


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf, and how its gradient becomes passes."""

    leaves: list[torch.Tensor]
    submit: Callable[[list[torch.Tensor]], list[Future[ForwardBackwardOutput]]]


@dataclass(slots=True)
class Tape:
    """What was asked for since the last backward."""

    parts: list[Part] = field(default_factory=list)
    passes: list[Future[ForwardBackwardOutput]] = field(default_factory=list)
    rows: list[TrainSequence] = field(default_factory=list)

    def add(self, part: Part) -> None:
        self.parts.append(part)

    def backward(self, loss: torch.Tensor) -> None:
        """Differentiates, and submits a pass for every part that the loss depends on.

        Raises:
            TypeError, InvalidInputError: it is no loss, depends on no log-probability, or is not finite.
        """
        checked_loss(loss)
        loss.backward()
        for part in self.parts:
            if any(leaf.grad is not None for leaf in part.leaves):
                self.passes += part.submit(part.leaves)
        self.parts.clear()


def checked_loss(loss: Any) -> float:
    """The loss's value; raises where there is none to differentiate."""
    torch = import_torch()
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TypeError(f"loss: must be a tensor of one number, not {_what(loss)}")
    if not loss.requires_grad:
        raise InvalidInputError("it depends on no log-probability of this batch", field="loss", hint="use self.forward")
    if not torch.isfinite(loss).item():
        raise InvalidInputError(f"it is {loss.item()}", field="loss")
    return float(loss.item())


def leaf_logprobs(rows: Sequence[TrainSequence], outputs: Sequence[ForwardBackwardOutput]) -> list[torch.Tensor]:
    """A leaf [T] for each row, from the outputs of its chunks."""
    torch = import_torch()
    found = [output["logprobs"].to_numpy() for each in outputs for output in each.loss_fn_outputs]
    return [
        torch.from_numpy(aligned(np.asarray(values, np.float32))).requires_grad_()
        for _, values in zip(rows, found, strict=True)
    ]


def weighted_data(rows: Sequence[TrainSequence], leaves: Sequence[torch.Tensor]) -> list[Datum]:
    """The data of the second pass: w = −∂loss/∂p for each target.

    Raises:
        InvalidInputError: a gradient is not finite.
    """
    return [_weighted(row, leaf, f"batch[{index}]") for index, (row, leaf) in enumerate(zip(rows, leaves, strict=True))]


def _weighted(row: TrainSequence, leaf: torch.Tensor, field: str) -> Datum:
    datum = row.to_datum(weights=False)
    gradient = np.zeros(len(row), np.float32) if leaf.grad is None else leaf.grad.numpy()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = np.where(targets != IGNORE_INDEX, -gradient[1:], np.float32(0))
    bad = np.argwhere(~np.isfinite(weights))
    if len(bad):
        raise InvalidInputError(f"the gradient for {field} is not finite at token {int(bad[0][0]) + 1}", field="loss")
    return Datum(datum.model_input, {"target_tokens": targets, "weights": weights})


def _what(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"one of shape {list(shape)}"
