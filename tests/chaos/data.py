"""What a program's calls send, and what of an outcome is compared: to the bit, in a form that a diary can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep import Datum, ModelInput
from tests.chaos import programs
from tests.chaos.diary import Event

if TYPE_CHECKING:
    import torch

_LENGTHS = range(4, 24)


def batch(seed: int, num_data: int, loss: str) -> list[Datum]:
    return [_datum(seed, index, loss) for index in range(num_data)]


def custom_loss(
    data: Sequence[Datum], logprobs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Squared distance of each sequence's mean log-probability from −2."""
    import torch

    loss = torch.stack([(each.mean() + 2.0) ** 2 for each in logprobs]).sum()
    return loss, {"distance": loss.detach()}


def passed(output: Any) -> Event:
    """Of a pass. Where the client computes the loss, what the server differentiated is compared."""
    total = output.metrics.get("surrogate_loss:sum", output.metrics.get("loss:sum"))
    arrays = [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]
    return {"sum": _bits(total), "logprobs": _digest(arrays)}


def stepped(output: Any) -> Event:
    return {"step": output.metrics["step"], "grad_norm": _bits(output.metrics["grad_norm"])}


def sampled(result: Any) -> Event:
    return {
        "version": result.policy_version,
        "tokens": [sequence.tokens for sequence in result.sequences],
        "logprobs": _digest([np.asarray(sequence.logprobs, np.float32) for sequence in result.sequences]),
    }


def _datum(seed: int, index: int, loss: str) -> Datum:
    length = _LENGTHS[(seed + 7 * index) % len(_LENGTHS)]
    ids = programs.tokens(seed, index, length=length + 1)
    if loss == "cross_entropy":
        return Datum.from_prompt_completion(ids[: length // 2], ids[length // 2 :])
    inputs = {
        "target_tokens": ids[1:],
        "logprobs": programs.numbers(seed, index, length=length, low=-6.0, high=-0.5),
        "advantages": programs.numbers(seed + 1, index, length=length, low=-1.0, high=1.0),
    }
    return Datum(ModelInput.from_ints(ids[:-1]), inputs)


def _bits(number: float) -> str:
    return float(number).hex()


def _digest(arrays: Sequence[np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]
