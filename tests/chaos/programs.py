"""The training loops of the suite: a seed gives a list of calls, the same in every process.

Pure: it neither trains nor waits. Calls whose outcome depends on who is first (a cancellation) are such that the run's
state does not depend on it, so that every undisturbed execution of a program ends in the same bits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BASE_MODEL = "farstep/tiny"
FINAL = "final"
_FIRST_TOKEN, _LAST_TOKEN = 3, 500


@dataclass(frozen=True, slots=True)
class ForwardBackward:
    """`loss` is cross_entropy or importance_sampling, on `num_data` data drawn from `seed`."""

    seed: int
    num_data: int
    loss: str


@dataclass(frozen=True, slots=True)
class Custom:
    """A loss that the client computes: two operations in a row."""

    seed: int
    num_data: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Without a gradient. With `cancelled`, the client asks for it to be dropped at once."""

    seed: int
    num_data: int
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Save:
    name: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Publishes and samples. A `name` keeps a checkpoint, which is then sampled by its path; else `pin` is the gate."""

    name: str
    pin: Literal["min", "exact"]
    seed: int
    num_samples: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Of what the call at index `saved` kept."""

    saved: int
    optimizer: bool


@dataclass(frozen=True, slots=True)
class Reset:
    rank: int


Call = ForwardBackward | Custom | Forward | Step | Save | Publish | Load | Reset


@dataclass(frozen=True, slots=True)
class Program:
    """One run from its creation to its last checkpoint, which is called `FINAL`.

    `ahead` is how many operations may be outstanding.
    """

    seed: int
    rank: int
    dropout: float
    ahead: int
    calls: tuple[Call, ...]


def program(seed: int, *, num_steps: int) -> Program:
    """Every seed has its own mix; one in three has losses of its own, which need torch in the client."""
    draw = random.Random(f"program {seed}")
    calls: list[Call] = []
    with_custom = seed % 3 == 0
    saved: list[int] = []
    for step in range(num_steps):
        calls += _passes(draw, with_custom=with_custom and draw.random() < 0.3)
        calls.append(Step(draw.choice([1e-3, 3e-3, 1e-2])))
        if draw.random() < 0.15:
            calls.append(Forward(draw.randrange(1 << 30), 1, cancelled=draw.random() < 0.5))
        if draw.random() < 0.12:
            saved.append(len(calls))
            calls.append(Save(f"state-{step}"))
        if draw.random() < 0.2:
            calls.append(_publication(draw, step))
        if saved and draw.random() < 0.06:
            calls.append(Load(draw.choice(saved), optimizer=draw.random() < 0.7))
        elif step and draw.random() < 0.03:
            saved.clear()  # a checkpoint of another rank does not fit
            calls.append(Reset(draw.choice([2, 4])))
    calls.append(_publication(draw, num_steps))
    calls.append(Save(FINAL))
    return Program(seed, draw.choice([2, 4, 8]), draw.choice([0.0, 0.0, 0.1]), draw.choice([1, 4, 12]), tuple(calls))


def tokens(seed: int, index: int, *, length: int) -> list[int]:
    draw = random.Random(f"tokens {seed} {index}")
    return [draw.randint(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(length)]


def numbers(seed: int, index: int, *, length: int, low: float, high: float) -> list[float]:
    draw = random.Random(f"numbers {seed} {index}")
    return [draw.uniform(low, high) for _ in range(length)]


def versions(calls: Sequence[Call]) -> dict[int, int]:
    """The policy version that each publication must get, by the index of its call."""
    published = [index for index, call in enumerate(calls) if isinstance(call, Publish)]
    return {index: version for version, index in enumerate(published, start=1)}


def _passes(draw: random.Random, *, with_custom: bool) -> list[Call]:
    passes: list[Call] = []
    for _ in range(draw.choice([1, 1, 2])):
        loss = draw.choice(["cross_entropy", "cross_entropy", "importance_sampling"])
        passes.append(ForwardBackward(draw.randrange(1 << 30), draw.randint(1, 3), loss))
    if with_custom:
        passes.append(Custom(draw.randrange(1 << 30), 2))
    return passes


def _publication(draw: random.Random, step: int) -> Publish:
    kept = draw.random() < 0.4
    return Publish(
        f"policy-{step}" if kept else "",
        draw.choice(["min", "exact"]),
        draw.randrange(1 << 30),
        num_samples=draw.randint(1, 3),
        max_tokens=draw.choice([4, 16, 48]),
    )
