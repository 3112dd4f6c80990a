"""A loss that the user computes: from log-probabilities to a gradient for each of them, in torch, on this machine.

The server then differentiates −Σ w·p with w = −dC/dp, whose gradient is that of C by the chain rule; so that what it
needs for this is cross-entropy. No I/O.

Shapes: T positions of a datum; [T, K] with several candidates a position.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep._tensor_data import TensorData, as_tensor_data
from farstep.errors import InvalidInputError, MissingExtraError
from farstep.types import Datum
from farstep_proto.loss_table import IGNORE_INDEX
from farstep_proto.tensors import Array

if TYPE_CHECKING:
    import torch

    CustomLoss = Callable[[list[Datum], list[torch.Tensor]], tuple[torch.Tensor, Mapping[str, float]]]
else:
    CustomLoss = Callable[..., Any]  # type hints resolve where torch is not installed, too


def require_torch() -> None:
    """Raises MissingExtraError where torch is not installed; does not import it yet."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("forward_backward_custom needs torch", hint="pip install torch")


def asking_for_logprobs(data: Sequence[Any]) -> list[Datum]:
    """The same data with their targets alone, so that every target's log-probability comes back."""
    return [_with_targets(datum, f"data[{index}]") for index, datum in enumerate(data)]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss` and `metrics` as the user's function gave them; `weights[i]` is −dC/dp of datum i, 0 where ignored."""

    loss: float
    metrics: Mapping[str, float]
    weights: list[Array]

    def weighted(self, data: Sequence[Datum]) -> list[Datum]:
        """The data of the second pass, from those of the first."""
        return [
            Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": weights})
            for datum, weights in zip(data, self.weights, strict=True)
        ]

    def all_metrics(self, surrogate: Mapping[str, float]) -> dict[str, float]:
        """The user's, and what the second pass differentiated."""
        return {**self.metrics, "surrogate_loss:sum": surrogate["loss:sum"]}


def evaluate(
    loss_fn: CustomLoss, data: list[Any], targets: Sequence[Datum], outputs: Sequence[Mapping[str, TensorData]]
) -> Evaluation:
    """Calls the user's function on leaf tensors, and differentiates what it gives.

    Args:
        data: as the user gave them.
        targets: the same data as they were sent.
        outputs: of the first pass, with `logprobs`.

    Raises:
        TypeError, InvalidInputError: the function gave no loss to differentiate, or a gradient that is not finite.
    """
    import torch

    leaves = [torch.from_numpy(np.array(output["logprobs"])).requires_grad_() for output in outputs]
    with torch.enable_grad():
        loss, metrics = _called(loss_fn, data, leaves)
        loss.backward()
    weights = [
        _weights(leaf, datum, field=f"data[{index}]")
        for index, (leaf, datum) in enumerate(zip(leaves, targets, strict=True))
    ]
    return Evaluation(loss.item(), metrics, weights)


def _called(
    loss_fn: CustomLoss, data: list[Any], leaves: list[torch.Tensor]
) -> tuple[torch.Tensor, Mapping[str, float]]:
    import torch

    result = loss_fn(data, leaves)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError("loss_fn: must return (loss, metrics)")
    loss, metrics = result
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise TypeError("loss_fn: the loss must be a tensor of one number")
    if not loss.requires_grad:
        raise InvalidInputError("the loss depends on no log-probability", field="loss_fn")
    if not torch.isfinite(loss).item():
        raise InvalidInputError(f"the loss is {loss.item()}", field="loss_fn")
    if not isinstance(metrics, Mapping):
        raise TypeError(f"loss_fn: metrics must be a mapping of names to numbers, not {type(metrics).__name__}")
    numbers = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
    return loss, {str(name): float(value) for name, value in numbers.items()}


def _weights(leaf: torch.Tensor, datum: Datum, *, field: str) -> Array:
    gradient = np.zeros(tuple(leaf.shape), np.float32) if leaf.grad is None else leaf.grad.numpy()
    weights: Array = np.where(datum.loss_fn_inputs["target_tokens"].to_numpy() != IGNORE_INDEX, -gradient, 0.0)
    bad = np.argwhere(~np.isfinite(weights))
    if len(bad):
        raise InvalidInputError(f"the gradient for {field} is not finite at position {int(bad[0][0])}", field="loss_fn")
    return weights


def _with_targets(datum: Any, field: str) -> Datum:
    if not hasattr(datum, "model_input") or not hasattr(datum, "loss_fn_inputs"):
        raise TypeError(f"{field}: expected a Datum, not {type(datum).__name__}")
    if "target_tokens" not in datum.loss_fn_inputs:
        raise InvalidInputError("missing 'target_tokens'", field=f"{field}.loss_fn_inputs")
    targets = as_tensor_data("target_tokens", datum.loss_fn_inputs["target_tokens"])
    return Datum(datum.model_input, {"target_tokens": targets})
