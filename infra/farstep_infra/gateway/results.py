"""What a promise has come to, in the form in which `retrieve_future` tells it. A `Failure` is one, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import Message

from farstep_infra.gateway.bodies import Body
from farstep_infra.gateway.failures import Failure


class Promised(Body):
    """The answer to a submission."""

    request_id: str
    model_id: str | None = None


def _nothing() -> None:
    """Nobody needs to know."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Not yet; `reason` is told to the user where the state is not "active"."""

    state: str = "active"  # or "paused_capacity"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A result: of forward and sample a message, of all else a JSON body.

    Args:
        on_told: is called when it has been sent.
    """

    body: Message | Body
    on_told: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Failed:
    failure: Failure
    on_told: Callable[[], None] = _nothing


Result = Pending | Done | Failed
