"""`Future`: the handle on one submitted operation.

A wait is not the operation: a timeout, Ctrl-C or a cancelled task ends the wait and nothing else, and asking
again gives the result. Outcomes are decoded once, in the thread that asks first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from farstep import _progress
from farstep._convert import Decode, outcome_error
from farstep._loop import awaiting, blocking
from farstep._pending import Pending
from farstep._troubles import troubles
from farstep.errors import ResultTimeout

if TYPE_CHECKING:
    from farstep._connection import Connection

T = TypeVar("T")
_NOTHING: Any = object()


class Future(Generic[T]):
    """Can be waited for from any thread, awaited on any event loop, and both as often as one likes."""

    def __init__(
        self,
        pending: Pending,
        decode: Decode[T],
        *,
        operation_id: str,
        verb: str,
        connection: Connection,
        describe: Callable[[], str] = lambda: "",
    ) -> None:
        self._pending = pending
        self._decode = decode
        self._operation_id = operation_id
        self._verb = verb
        self._connection = connection
        self._describe = describe
        self._lock = threading.Lock()
        self._value: T = _NOTHING

    @property
    def operation_id(self) -> str:
        """The server's name for the operation."""
        return self._operation_id

    @property
    def seq(self) -> int | None:
        """Its place in its run; None for what belongs to no run, such as a sample."""
        _, _, seq = self._operation_id.rpartition(":")
        return int(seq) if seq.isdecimal() and seq != self._operation_id else None

    @property
    def verb(self) -> str:
        return self._verb

    def done(self) -> bool:
        """Whether the outcome is here, good or bad."""
        return self._pending.outcome is not None

    def result(self, timeout: float | None = None) -> T:
        """The operation's result, waiting up to `timeout` seconds for it.

        Raises:
            ResultTimeout: it is not there yet; the operation goes on.
            RemoteOpError: the operation failed.
            UnknownRequestError: the server no longer knows it.
            ServerShutdownError: the server went down before it ran.
        """
        self._wait(timeout)
        error = self._error()
        if error is not None:
            raise error
        return self._decoded()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """What `result()` would raise because of the operation; None where it succeeded."""
        self._wait(timeout)
        return self._error()

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done():
            yield from self._pending.wait_async().__await__()
        return self.result()

    def _cancel(self) -> Coroutine[Any, Any, bool]:
        """Asks the server to drop the operation if it has not started, and says whether it did.

        The future of a dropped operation raises RemoteOpError with the error class CancelledError.
        """
        return self._connection.cancel(self._operation_id)

    cancel = blocking(_cancel)
    cancel_async = awaiting(_cancel)

    def add_done_callback(self, callback: Callable[[Future[T]], object]) -> None:
        """Calls it with this future when the outcome is here: at once, or on the SDK's own thread.

        There it must be quick; a blocking call of the SDK inside it is refused.
        """
        self._pending.watch(lambda: _discard(callback(self)))

    def _wait(self, timeout: float | None) -> None:
        if timeout is not None and timeout < 0:
            timeout = 0.0
        if self.done() or _progress.wait(
            self._pending, timeout, look=self._look, label=self._label, trouble=self._trouble
        ):
            return
        raise ResultTimeout(
            f"{self._verb} {self._operation_id} has no result after {timeout:g} s",
            hint="the operation goes on; call result() again",
        )

    def _error(self) -> Exception | None:
        outcome = self._pending.outcome
        if outcome is None or isinstance(outcome, Exception):
            return outcome.with_traceback(None) if outcome is not None else None
        return outcome_error(outcome)

    def _decoded(self) -> T:
        with self._lock:
            if self._value is _NOTHING:
                outcome = self._pending.outcome
                assert outcome is not None
                assert not isinstance(outcome, Exception)
                self._value = self._decode(outcome)
            return self._value

    async def _look(self) -> str:
        """Where the operation stands, in words."""
        operation = await self._connection.look(self._operation_id, budget_s=0.0)
        return _progress.describe_state(operation)

    def _trouble(self) -> str:
        return troubles.describe(self._connection.url)

    def _label(self) -> str:
        return " · ".join(part for part in (self._verb, self._describe()) if part)

    def __repr__(self) -> str:
        state = "pending"
        if self.done():
            error = self._error()
            state = "done" if error is None else f"failed: {type(error).__name__}"
        return f"<Future {self._verb} {self._operation_id} {state}>"


def _discard(_: object) -> None:
    return None
