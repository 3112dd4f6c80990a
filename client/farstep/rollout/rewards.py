"""Rewards: a function of a record, called for many at once, whose numbers are finite or named.

A function is called with what its parameters are named after: `record` (or any single parameter of another name) is the
`RewardRecord`; `prompt`, `completion`, `answer` and the record's other fields are these. It gives a number, or several
by name, whose sum is the reward: each is then told by itself, too.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from typing import Any

from farstep.rollout.calling import contained
from farstep.rollout.records import RewardRecord
from farstep.trainers.errors import RolloutError

_FIELDS = frozenset(each.name for each in fields(RewardRecord))


class RewardError(RolloutError):
    """`places` are (prompt, sample) of the records that have no reward."""

    def __init__(self, message: str, *, places: list[tuple[int, int]], hint: str = "") -> None:
        super().__init__(message, hint=hint, field="reward_fn")
        self.places = places


@dataclass(frozen=True, slots=True)
class Score:
    """A reward, and the parts that it is the sum of, where they were told."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Reward:
    """A reward function, made callable with a record.

    Raises:
        RolloutError: it cannot be called, or a parameter is named after nothing that a record has.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise RolloutError(f"a {type(function).__name__} cannot be called", field="reward_fn")
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 (an object with an async __call__)
        )
        self._names = _parameters(function)

    async def __call__(self, record: RewardRecord, threads: Executor) -> float:
        """As `score`, without its parts."""
        return (await self.score(record, threads)).value

    async def score(self, record: RewardRecord, threads: Executor) -> Score:
        """Synchronous functions run on a thread. Raises ValueError where it is no number that is finite."""
        arguments = self._arguments(record)
        call = (lambda: self._function(**arguments)) if self._names else (lambda: self._function(record))
        with contained("the reward function"):
            value = call() if self._is_async else await asyncio.get_running_loop().run_in_executor(threads, call)
            if isinstance(value, Awaitable):
                value = await value
        return score_of(value)

    def _arguments(self, record: RewardRecord) -> dict[str, Any]:
        return {name: record if name == "record" else getattr(record, name) for name in self._names}


def score_of(value: Any) -> Score:
    """Raises ValueError for what is no finite number, nor several by name."""
    if not isinstance(value, Mapping):
        return Score(finite(value))
    if not value:
        raise ValueError("an empty mapping is no reward")
    parts: dict[str, float] = {}
    for name, each in value.items():
        try:
            parts[str(name)] = finite(each)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return Score(finite(math.fsum(parts.values())), parts)


def finite(value: Any) -> float:
    """The number that a reward is. Raises ValueError for what is none, or not finite."""
    if isinstance(value, str | bytes) or value is None:
        raise ValueError(f"{value!r} is not a number")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a {type(value).__name__} is not a number") from error
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number


def raise_for(failures: Mapping[tuple[int, int], Exception]) -> None:
    """Raises RewardError, naming the first few."""
    places = sorted(failures)
    raise RewardError(described(failures), places=places) from failures[places[0]]


def described(failures: Mapping[tuple[int, int], Exception]) -> str:
    """Which records have no reward, and why, of the first few."""
    places = sorted(failures)
    shown = "; ".join(
        f"prompt {prompt}, sample {sample}: {type(failures[prompt, sample]).__name__}: {failures[prompt, sample]}"
        for prompt, sample in places[:5]
    )
    more = f"; and {len(places) - 5} more" if len(places) > 5 else ""
    return f"no reward for {len(places)} records: {shown}{more}"


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The fields that a function asks for by name; none where it takes the record as its one argument."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return ()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    required = [each for each in named if each.default is each.empty]
    known = [each.name for each in named if (each.name == "record" or each.name in _FIELDS)]
    if all(each.name in known and each.kind is not each.POSITIONAL_ONLY for each in required) and known:
        return tuple(known)
    if len(required) == 1 or (not required and (named or takes_all or takes_any)):
        return ()
    unknown = [each.name for each in required if each.name not in known]
    raise RolloutError(
        f"no record has {', '.join(unknown)}" if unknown else "it takes nothing, and it is to be given a record",
        field="reward_fn",
        hint=f"one parameter takes the record; several are named after its fields: {', '.join(sorted(_FIELDS))}",
    )
