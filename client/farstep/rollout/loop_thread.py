"""An event loop on a thread of its own, for calls that wait: agents and rewards never run on the SDK's own loop."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

S = TypeVar("S", bound="Waiting")
P = ParamSpec("P")
T = TypeVar("T")


class Waiting(Protocol):
    """What has calls that can be waited for."""

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


def waited(function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], T]:
    """The front that waits: of a method `name_async` it makes `name`."""

    @functools.wraps(function)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._wait(function(self, *args, **kwargs))

    name = function.__name__.removesuffix("_async")
    call.__name__, call.__qualname__ = name, f"{function.__qualname__.rpartition('.')[0]}.{name}"
    return call


class LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="rollout", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it there and waits. Ctrl-C ends the wait and cancels it."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a waiting call inside an agent or a reward would wait for itself: await its async twin")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            rest = asyncio.all_tasks(self._loop)
            for task in rest:
                task.cancel()
            if rest:
                self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
