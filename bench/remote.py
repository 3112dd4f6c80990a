"""The remote side: runs on a real dp_worker, driven through the SDK as a user's loop drives it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.batches import Sequence as Tokens
from bench.settings import ADAM
from farstep import Datum, ModelInput, TrainingClient


@dataclass(frozen=True, slots=True)
class Step:
    seconds: float
    loss_sums: list[float]


def to_data(batch: Sequence[Tokens]) -> list[Datum]:
    return [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]}) for tokens in batch]


def train_step(clients: Sequence[TrainingClient], data: Sequence[Datum]) -> Step:
    """One step of every run at once, from the first submission to the last outcome."""
    started = time.perf_counter()
    submitted = [(client.forward_backward(data), client.optim_step(ADAM)) for client in clients]
    outputs = [(passed.result(), stepped.result()) for passed, stepped in submitted]
    return Step(time.perf_counter() - started, [output.metrics["loss:sum"] for output, _ in outputs])


def latencies(client: TrainingClient, data: Sequence[Datum], *, repeats: int) -> list[float]:
    """Seconds from submission to outcome, one operation at a time."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        client.forward_backward(data).result()
        found.append(time.perf_counter() - started)
    return found


def many_tiny_steps(client: TrainingClient, data: Sequence[Datum], *, num_operations: int, at_once: int = 50) -> None:
    """Tiny operations, a gradient and a step in turn, `at_once` pairs under way together."""
    for _ in range(num_operations // (2 * at_once)):
        pairs = [(client.forward_backward(data), client.optim_step(ADAM)) for _ in range(at_once)]
        for passed, stepped in pairs:
            passed.result()
            stepped.result()
