"""What a run has done so far, counted as outcomes arrive: steps, tokens, loss, speed, policy version.

Lives on the background loop; other threads only read single numbers from it. Each optimizer step gives one
`StepRecord`, over all passes since the step before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from farstep_proto.v1 import operations_pb2, training_pb2


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step: its metrics by name, as they are logged."""

    step: int
    metrics: dict[str, float]


@dataclass(slots=True)
class _SinceStep:
    """Loss is averaged over active tokens, so that long batches count as much as they should."""

    num_tokens: int = 0
    num_active: float = 0.0
    weighted_loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class RunMeter:
    def __init__(self, *, step: int, policy_version: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.step = step
        self.policy_version = policy_version
        self.tokens_per_s = 0.0
        self._clock = clock
        self._since = _SinceStep()
        self._stepped_at = clock()

    def count_pass(self, loss: float, metrics: Mapping[str, float], *, num_tokens: int) -> None:
        """`loss` is a mean over pairs or over active tokens, as the metrics tell."""
        self._since.num_tokens += num_tokens
        num_active = metrics.get("pairs:sum", metrics.get("tokens:sum", num_tokens))
        self._since.num_active += num_active
        self._since.weighted_loss += loss * num_active
        self._since.metrics |= metrics

    def count_step(self, response: training_pb2.OptimStepResponse) -> StepRecord:
        now = self._clock()
        metrics = dict(response.metrics)
        self.step = int(metrics.pop("step", self.step + 1))
        since, self._since = self._since, _SinceStep()
        if since.num_tokens:
            self.tokens_per_s = since.num_tokens / max(now - self._stepped_at, 1e-9)
            metrics = {**since.metrics, **metrics}
        if since.num_active:
            metrics["loss"] = since.weighted_loss / since.num_active
        self._stepped_at = now
        return StepRecord(
            self.step, {**metrics, "tokens_per_s": self.tokens_per_s, "policy_version": float(self.policy_version)}
        )

    def count_publication(self, response: training_pb2.SaveWeightsResponse) -> None:
        if response.HasField("policy_version"):
            self.policy_version = max(self.policy_version, response.policy_version)

    def restart(self, *, step: int) -> None:
        """The run's weights were replaced: what was counted since the last step belongs to no step."""
        self.step = step
        self._since = _SinceStep()

    def describe(self) -> str:
        speed = f", {self.tokens_per_s:,.0f} tokens/s" if self.tokens_per_s else ""
        return f"step {self.step}{speed}"


def succeeded(operation: operations_pb2.Operation) -> bool:
    return operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED
