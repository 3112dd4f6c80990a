"""A slot that one operation's outcome falls into, once, and that any number of threads and loops can watch.

Ten thousand of them may be open: each is a lock and a small dict. Waiting leaves nothing behind, however
it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import Callable

from farstep_proto.v1 import operations_pb2 as pb

log = logging.getLogger("farstep")

Outcome = pb.Operation | Exception
_tokens = itertools.count()


class Pending:
    """Args:
    on_arrival: sees the outcome before anybody else does, on the background loop; must be quick.
    """

    __slots__ = ("_lock", "_on_arrival", "_outcome", "_watchers")

    def __init__(self, on_arrival: Callable[[pb.Operation], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._on_arrival = on_arrival
        self._outcome: Outcome | None = None
        self._watchers: dict[int, Callable[[], None]] = {}

    @property
    def outcome(self) -> Outcome | None:
        return self._outcome

    def set(self, outcome: Outcome) -> None:
        """Called once, on the background loop."""
        if self._on_arrival is not None and isinstance(outcome, pb.Operation):
            _call(functools.partial(self._on_arrival, outcome))
            self._on_arrival = None
        with self._lock:
            self._outcome = outcome
            watchers, self._watchers = self._watchers, {}
        for watcher in watchers.values():
            _call(watcher)

    def watch(self, watcher: Callable[[], None]) -> int:
        """Calls it when the outcome is there: at once, or later on the background loop."""
        token = next(_tokens)
        with self._lock:
            if self._outcome is None:
                self._watchers[token] = watcher
                return token
        _call(watcher)
        return token

    def unwatch(self, token: int) -> None:
        with self._lock:
            self._watchers.pop(token, None)

    def wait(self, timeout_s: float | None) -> bool:
        """Whether the outcome came in time."""
        if self._outcome is not None:
            return True
        arrived = threading.Event()
        token = self.watch(arrived.set)
        try:
            return arrived.wait(timeout_s)
        finally:
            self.unwatch(token)

    async def wait_async(self) -> None:
        """The same on whatever event loop is running; cancelling it touches nothing else."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits on it any more
                loop.call_soon_threadsafe(_resolve, waiter)

        token = self.watch(wake)
        try:
            await waiter
        finally:
            self.unwatch(token)

    def orphan_after_fork(self, error: Exception) -> None:
        """In a forked child, where nobody will deliver this, and where the lock may be held by no thread."""
        self._lock = threading.Lock()
        self._watchers = {}
        self._outcome = self._outcome or error


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("a callback of a future failed")
