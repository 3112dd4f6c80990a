"""Calls what users wrote, of whichever colour it is: a function on a thread, a coroutine or generator on the loop.

Whatever it raises is an ordinary exception of the caller's, so that it ends one sample and nothing else: `sys.exit`
in a tool and a cancellation that nobody asked for, too, which would end the event loop and all that runs on it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any


async def call_agent(run_agent: Callable[..., Any], context: Any, batch: Any, threads: Executor) -> list[Any]:
    """What it gave: one thing, or what its generator yielded."""
    call = run_agent if inspect.isroutine(run_agent) else getattr(run_agent, "__call__", None)  # noqa: B004
    with contained("the agent"):
        if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
            return await _taken(run_agent(context, batch), threads)
        loop = asyncio.get_running_loop()
        given = await loop.run_in_executor(threads, lambda: _listed(run_agent(context, batch)))
        return await _taken(given, threads)


@contextmanager
def contained(who: str) -> Iterator[None]:
    """Raises RuntimeError instead of SystemExit, and of a CancelledError that is not the present task's."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"{who} called sys.exit({error.code!r})") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError(f"{who} cancelled itself") from error


async def _taken(given: Any, threads: Executor) -> list[Any]:
    if isinstance(given, Awaitable):
        given = await given
    if inspect.isasyncgen(given):
        return [each async for each in given]
    if isinstance(given, Iterator):
        return await asyncio.get_running_loop().run_in_executor(threads, lambda: list(given))
    return given if isinstance(given, _Listed) else [given]


class _Listed(list[Any]):
    """What a generator yielded, as opposed to a list that a function returned."""


def _listed(given: Any) -> Any:
    return _Listed(given) if isinstance(given, Iterator) else given
