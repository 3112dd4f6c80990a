"""Samples submitted with 202: each a task, its outcome kept in the operation table until the client has it.

A sample counts as queued until it is finished, also while its sequences are decoded: it changes nothing, and
can be cancelled at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator

from farstep_proto.errors import InvalidInput, TooManyRequests, error_from_exception
from farstep_proto.v1 import operations_pb2, sampling_pb2
from farstep_serving.operations import OperationTable

DRAIN_S = 8.0  # a launcher kills after 12
_SETTLE_S = 0.02
_KEY = re.compile(r"[A-Za-z0-9_:.-]{1,128}\Z")

Work = Callable[[], Awaitable[sampling_pb2.SampleResponse]]


class Submissions:
    """The samples in flight of one server, replica or router.

    Args:
        max_pending: beyond this many, new ones are refused.
    """

    def __init__(self, *, max_pending: int) -> None:
        self.table = OperationTable(queue_place=self._place)
        self._max_pending = max_pending
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._num_watched = 0
        self._watched_at = time.monotonic()

    @property
    def num_in_flight(self) -> int:
        return len(self._tasks) + self._num_watched

    @property
    def idle_s(self) -> float:
        """For how long nothing has been in flight."""
        if self._num_watched:
            return 0.0
        return min(self.table.idle_s, time.monotonic() - self._watched_at)

    def submit(self, key: str, *, client_id: str, digest: bytes, work: Work) -> operations_pb2.Accepted:
        """Enters a sample under the key that its client chose, and starts it unless it is there already.

        Raises:
            Conflict: the key was used for another request.
            TooManyRequests: too much is in flight.
            Draining: the server is shutting down.
        """
        if key not in self._tasks:
            self.check_room()
        if self.table.open(key, client_id=client_id, verb="sample", digest=digest):
            task = asyncio.create_task(self._run(key, work))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return operations_pb2.Accepted(operation_id=key, queue_place=self._place(key))

    def check_room(self) -> None:
        """Raises TooManyRequests when nothing more is taken."""
        if self.num_in_flight >= self._max_pending:
            raise TooManyRequests(f"{self.num_in_flight} samples are in flight already", retry_after_s=1.0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Counts a sample whose client waits for it, with the connection open; raises as `check_room`."""
        self.check_room()
        self._num_watched += 1
        try:
            yield
        finally:
            self._num_watched -= 1
            self._watched_at = time.monotonic()

    async def settled(self, timeout_s: float) -> bool:
        """Waits until every client that listens has heard of its samples; whether it came to that in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._num_watched or not self.table.is_settled:  # noqa: ASYNC110 - time alone may settle it
                    await asyncio.sleep(_SETTLE_S)
        return not self._num_watched and self.table.is_settled

    def cancel(self, operation_id: str) -> bool:
        """Drops a sample that is not finished; the caller records it."""
        task = self._tasks.pop(operation_id, None)
        return task is not None and task.cancel()

    async def __aenter__(self) -> Submissions:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancels what is still in flight."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str, work: Work) -> None:
        try:
            response = await work()
        except Exception as error:  # becomes the operation's outcome
            self.table.fail(key, error_from_exception(error))
        else:
            done = operations_pb2.Operation(state=operations_pb2.OPERATION_STATE_SUCCEEDED, sample=response)
            self.table.finish(key, done)

    def _place(self, operation_id: str) -> int:
        """How many samples in flight were there before it."""
        return next((place for place, key in enumerate(self._tasks) if key == operation_id), 0)


def checked_key(key: str) -> str:
    """The key that a client chose, or else one of ours.

    Raises:
        InvalidInput: it is none.
    """
    key = key or uuid.uuid4().hex
    if not _KEY.match(key):
        raise InvalidInput("1 to 128 letters, digits, '.', '_', ':' or '-'", field="key")
    return key
