"""The one background event loop, and the only crossing between it and the caller.

Everything that speaks to a server runs on this loop, in one daemon thread for the whole process. A public
call is written once, as a function that returns a coroutine; `blocking` and `awaiting` make its two fronts.
What the function does before it returns the coroutine happens on the calling thread.

Invariant: nothing here blocks the background loop, and nothing outside this file touches it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, TypeVar

from farstep._awake import clock

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_at_exit: list[Callable[[], Coroutine[Any, Any, None]]] = []

EXIT_S = 2.0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it on the background loop and waits. Ctrl-C ends the wait and cancels it."""
    future = start(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it on the background loop and awaits it on the caller's; cancelling the caller cancels it."""
    return await asyncio.wrap_future(start(coroutine))


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts it on the background loop and waits for nothing."""
    return asyncio.run_coroutine_threadsafe(coroutine, _background_loop())


def call_soon(callback: Callable[[], object]) -> None:
    """Has the background loop call it; where that loop is gone there is nothing left to call it for."""
    if _loop is not None and not _loop.is_closed():
        _loop.call_soon_threadsafe(callback)


def at_exit(callback: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs it on the background loop before the process ends, within a bounded time."""
    _at_exit.append(callback)


def blocking(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], T]:
    """The front that waits: a method `_name` becomes `name`."""

    @functools.wraps(function)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if threading.current_thread() is _thread:
            raise RuntimeError(f"{call.__name__} inside a callback of the SDK would wait for itself")
        return run(function(self, *args, **kwargs))

    return _renamed(call, function, "")


def awaiting(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """The front to await: a method `_name` becomes `name_async`."""

    @functools.wraps(function)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_async(function(self, *args, **kwargs))

    return _renamed(call, function, "_async")


def _renamed(call: Callable[P, T], function: Callable[..., Any], suffix: str) -> Callable[P, T]:
    name = function.__name__.removeprefix("_") + suffix
    owner = function.__qualname__.rpartition(".")[0]
    call.__name__, call.__qualname__ = name, f"{owner}.{name}"
    return call


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_serve, args=(_loop,), name="farstep", daemon=True)
            _thread.start()
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    clock.keep_looking(loop)
    loop.run_forever()
    loop.close()


def _stop() -> None:
    """Closes connections before the interpreter takes their thread away."""
    if _loop is None or _thread is None:
        return

    async def finish() -> None:
        await asyncio.gather(*(callback() for callback in _at_exit), return_exceptions=True)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    try:
        asyncio.run_coroutine_threadsafe(finish(), _loop).result(EXIT_S)
    except TimeoutError:
        return
    _loop.call_soon_threadsafe(_loop.stop)
    _thread.join(EXIT_S)


def _forget_after_fork() -> None:
    """The child has no such thread: it makes its own when it needs one."""
    global _lock, _loop, _thread
    _lock, _loop, _thread = threading.Lock(), None, None


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
