"""The checks of a trainer's inputs: made before anything is paid for, without torch, GPU or network.

Each passes or raises TrainerError naming row, key or argument; none changes what it looks at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.sequence import TrainSequence


def check_rows(rows: object, *, field: str) -> None:
    """Rows in memory: a list, not empty, of mappings, `TrainSequence`s or groups of them.

    Raises:
        TrainerError: naming the row.
    """
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Sequence):
        raise TrainerError(
            f"must be a list of rows, not {type(rows).__name__}",
            field=field,
            hint="list(…) makes one",
            stage="validate",
        )
    if not rows:
        raise TrainerError("is empty", field=field, stage="validate")
    for index, row in enumerate(rows):
        if not isinstance(row, TrainSequence | Mapping) and not _is_example(row):
            raise TrainerError(
                f"must be a mapping or a TrainSequence, not {type(row).__name__}",
                field=f"{field}[{index}]",
                stage="validate",
            )


def _is_example(row: object) -> bool:
    """Several sequences that belong together."""
    return isinstance(row, list | tuple) and bool(row) and all(isinstance(each, TrainSequence) for each in row)


def resolve_function(given: object, *, field: str) -> Callable[..., Any]:
    """A function, or the one that "module:function" names, looked up now.

    Raises:
        TrainerError: there is no such module or attribute, or it cannot be called.
    """
    if isinstance(given, str):
        module, colon, path = given.partition(":")
        if not (colon and path and all(part.isidentifier() for part in [*module.split("."), *path.split(".")])):
            raise TrainerError(f"{given!r} is not of the form module:function", field=field, stage="validate")
        try:
            found: Any = import_module(module)
        except Exception as error:
            raise TrainerError(
                f"{module} cannot be imported: {type(error).__name__}: {error}", field=field, stage="validate"
            ) from error
        for part in path.split("."):
            if not hasattr(found, part):
                raise TrainerError(f"{module} has no {path}", field=field, stage="validate")
            found = getattr(found, part)
        given = found
    if not callable(given):
        raise TrainerError(f"{type(given).__name__} cannot be called", field=field, stage="validate")
    return given


def check_agent(agent: object, *, field: str = "agent") -> object:
    """An agent: a function, something with `run_agent`, or "module:function" that names one; it is returned.

    Raises:
        TrainerError: it is none of them.
    """
    if isinstance(agent, str):
        return resolve_function(agent, field=field)
    if not callable(agent) and not callable(getattr(agent, "run_agent", None)):
        raise TrainerError(
            f"{type(agent).__name__} is neither a function nor has run_agent", field=field, stage="validate"
        )
    return agent


def probe_reward(function: Callable[..., Any], row: Any) -> float:
    """The reward of one row.

    Raises:
        TrainerError: it raises, or gives anything but a finite number.
    """
    try:
        value = function(row)
        if inspect.isawaitable(value):
            import asyncio

            async def finish() -> Any:
                return await value

            value = asyncio.run(finish())
    except Exception as error:
        raise TrainerError(
            f"fails on the row it was tried on: {type(error).__name__}: {error}", field="reward_fn", stage="validate"
        ) from error
    from farstep.rollout.rewards import score_of

    try:
        if isinstance(value, bool):  # a comparison where a number was meant, perhaps of the wrong things
            raise ValueError("a bool is no reward")
        return score_of(value).value
    except ValueError as error:
        raise TrainerError(
            f"gave {value!r} for the row it was tried on, not a finite number", field="reward_fn", stage="validate"
        ) from error
