"""On whose account a job runs: with whose prompts it may share work, whose turn it is, who is charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from farstep_proto.v1 import control_pb2


@dataclass(frozen=True, slots=True)
class Account:
    """Attributes:
    asker: the project that asks, empty for operators: each has a prefix cache of its own, and its turns.
    client: one of the asker's, who take turns among themselves.
    project: what the job is charged to: the run's, or else the asker.
    run_id: whose policy or checkpoint is sampled; empty: the base model.
    """

    asker: str = ""
    client: str = ""
    project: str = ""
    run_id: str = ""


NOBODY = Account()

Charge = Callable[[control_pb2.Usage], None]


def free_of_charge(used: control_pb2.Usage) -> None:
    """For engines that nobody counts."""


def usage_of(
    account: Account, *, num_samples: int, tokens_prompted: int, tokens_sampled: int, seconds: float
) -> control_pb2.Usage:
    return control_pb2.Usage(
        project=account.project,
        run_id=account.run_id,
        num_samples=num_samples,
        tokens_prompted=tokens_prompted,
        tokens_sampled=tokens_sampled,
        sampler_seconds=seconds,
    )
