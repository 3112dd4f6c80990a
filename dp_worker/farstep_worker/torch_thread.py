"""The thread that computes, and how work crosses from the event loop to it and back.

It takes the next operation from the queue by itself as soon as it has ended the last one, so that it never waits for
the loop while something is due; what comes before (reading, checking) and after (encoding, delivering) an operation
happens elsewhere meanwhile. It decides nothing about order: the queue does.

Invariant: each operation that was taken is reported to the loop as started, and then, unless the process ends first, as
ended; operations end in the order in which they were taken.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch

from farstep_worker.executor import Executor
from farstep_worker.operations import OperationQueue, Work
from farstep_worker.outcome import Outcome

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ended:
    """An operation that ran; both times are monotonic. `together` are the ids of all that shared its batch.

    `share` is its part of the time, where several were computed in it: by their tokens.
    """

    work: Work
    outcome: Outcome
    started: float
    ended: float
    together: tuple[str, ...] = ()
    share: float = 1.0


class TorchThread:
    """Args:
    on_start: hears on the event loop of each operation that starts.
    after: is called on the thread when operations have run together, with the seconds that they took.
    """

    def __init__(
        self,
        executor: Executor,
        queue: OperationQueue,
        *,
        num_threads: int,
        on_start: Callable[[Work], None],
        after: Callable[[Sequence[Work], float], None] = lambda group, seconds: None,
    ) -> None:
        self._executor = executor
        self._queue = queue
        self._num_threads = num_threads
        self._on_start = on_start
        self._after = after
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = threading.Event()
        self._running: tuple[Work, ...] = ()
        self._ended: asyncio.Queue[Ended | BaseException | None] = asyncio.Queue()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="torch").start()

    def wake(self) -> None:
        """Something was put into the queue, or the queue was closed: the thread ends when it has nothing left to do."""
        self._woken.set()

    @property
    def running(self) -> tuple[Work, ...]:
        """The operations that are being computed now: one, or several of different runs in one batch."""
        return self._running

    async def next_ended(self) -> Ended | None:
        """The next operation that ended, in order; None once the thread itself has.

        Raises:
            BaseException: whatever ended the thread. Operations that fail do not.
        """
        match await self._ended.get():
            case BaseException() as error:
                raise error
            case ended:
                return ended

    @property
    def has_more(self) -> bool:
        """Whether `next_ended` has, or will have, an answer without anything more being taken from the queue."""
        return bool(self._running) or not self._ended.empty()

    def post(self, function: Callable[[], object]) -> None:
        """Has a function that does not raise called on the thread, between two operations."""
        self._calls.append(function)
        self._woken.set()

    async def call(self, function: Callable[[], T]) -> T:
        """What a function returns that is called on the thread, between two operations; raises what it raises."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                value = function()
            except Exception as error:
                self._post(result.set_exception, error)
            else:
                self._post(result.set_result, value)

        self.post(run)
        return await result

    def make_room(self) -> None:
        """On the thread: idle runs leave memory where others need it."""
        self._executor.make_room(self._queue.is_waiting)

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # it belongs to the thread that computes
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._post(self._ended.put_nowait, error)
        else:
            self._post(self._ended.put_nowait, None)

    def _turn(self) -> bool:
        """Does the next thing there is to do, waiting for it; False when there will be none."""
        self._woken.clear()
        if self._calls:
            self._calls.popleft()()
        elif group := self._queue.take_group(
            now=time.monotonic(), joins=self._executor.fusing.joins, most=self._executor.fusing.most
        ):
            self._execute(group)
        elif self._queue.is_closed and not self._calls:  # in this order: the last call came before the closing
            return False
        else:
            self._woken.wait()
        return True

    def _execute(self, group: list[Work]) -> None:
        started = time.monotonic()
        self._running = tuple(group)
        for work in group:
            self._post(self._on_start, work)
            self._executor.runs[work.run_id].seq = work.seq
        outcomes = self._outcomes(group)
        self._running = ()
        ended = time.monotonic()
        ids = tuple(work.operation_id for work in group)
        for work, outcome in zip(group, outcomes, strict=True):
            together = ids if outcome.is_fused else ()
            share = work.cost / sum(each.cost for each in group)
            self._post(self._ended.put_nowait, Ended(work, outcome, started, ended, together, share))
        self._after(group, ended - started)
        self.make_room()

    def _outcomes(self, group: list[Work]) -> list[Outcome]:
        if len(group) > 1:
            return self._executor.execute_together([(work.run_id, work.call) for work in group])
        return [self._executor.execute(work.run_id, work.call) for work in group]

    def to_loop(self, report: Callable[[T], None], what: T) -> None:
        """Has the event loop told of something, from any thread."""
        self._post(report, what)

    def _post(self, report: Callable[[T], None], what: T) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(report, what)
