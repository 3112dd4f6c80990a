"""What can go wrong with a sample, by kind, and how often each kind is tried again ("reward": never).

An agent says what failed by raising one of the classes here; what it raises otherwise is told apart by what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from farstep.errors import RateLimitError, ServerError, ServerShutdownError, TransportError
from farstep.trainers.errors import RolloutError

FailureKind = Literal["model_request", "bad_tool_arguments", "tool_failure", "budget", "reward", "other"]

RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class AgentFailure(RolloutError):
    """A sample that failed for a reason that is known."""

    kind: ClassVar[FailureKind] = "other"


class ModelRequestFailure(AgentFailure):
    kind = "model_request"


class BadToolArguments(AgentFailure):
    kind = "bad_tool_arguments"


class ToolFailure(AgentFailure):
    kind = "tool_failure"


class BudgetExceeded(AgentFailure):
    kind = "budget"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a sample is begun anew after a failure of each kind; turns of the failed attempt are thrown away.

    `model_request` is also how often the proxy repeats a request that the sampler did not answer.
    """

    model_request: int = 2
    bad_tool_arguments: int = 1
    tool_failure: int = 1
    budget: int = 0
    other: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name}: must be a whole number of at least 0, not {value!r}")

    def limit(self, kind: FailureKind) -> int:
        limits: Mapping[str, int] = asdict(self)
        return limits.get(kind, 0)


def kind_of(error: BaseException) -> FailureKind:
    """Of what kind an exception is, by its class, or the status that it carries as those of HTTP clients do."""
    if isinstance(error, AgentFailure):
        return error.kind
    if isinstance(error, TransportError | ServerShutdownError | ServerError | RateLimitError | ConnectionError):
        return "model_request"
    if isinstance(error, json.JSONDecodeError):
        return "bad_tool_arguments"
    if isinstance(error, TimeoutError):
        return "budget"
    if getattr(error, "status_code", None) in RETRYABLE_STATUS or _is_of_a_connection(error):
        return "model_request"
    return "other"


def _is_of_a_connection(error: BaseException) -> bool:
    """openai's, and httpx's own, without loading either."""
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return bool(names & {("openai", "APIConnectionError"), ("httpx", "TransportError"), ("httpx2", "TransportError")})
