"""`DaemonThreads`: an executor for code that may never end: agents and rewards that are plain functions.

Each call has a thread of its own, so one that hangs takes no place from another and does not keep the process from
ending, as threads of a pool would. How many run at once is for those who submit to decide.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(Executor):
    def __init__(self, name: str) -> None:
        self._name = name
        self._is_shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises RuntimeError after `shutdown`."""
        if self._is_shut:
            raise RuntimeError("this session has ended")
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(_ordinary(error))

        threading.Thread(target=call, name=self._name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Takes no more calls; waits for none."""
        self._is_shut = True


def _ordinary(error: BaseException) -> Exception:
    """What an event loop can carry: it stops at SystemExit and KeyboardInterrupt, and StopIteration never arrives."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    made = RuntimeError(f"sys.exit({error.code!r}) was called" if isinstance(error, SystemExit) else repr(error))
    made.__cause__ = error
    return made
