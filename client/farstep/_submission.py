"""One run's submissions: each gets the next seq, and none that failed is left as a gap.

The seq is taken on the calling thread, under a lock, so that operations run in the order of the calls. A
retry repeats it. A seq whose submission was refused, lost or interrupted is given up by `skip`, at once or
before the next submission, so that later operations do not wait for it.

Invariant: nothing is submitted behind a seq that was given up and whose `skip` the server has not taken.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from farstep._connection import Connection
from farstep._convert import Decode
from farstep._pending import Pending
from farstep.errors import ConflictError, FarstepError, NotFoundError, TransportError
from farstep.future import Future
from farstep_proto import paths
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2

log = logging.getLogger("farstep")

GIVE_UP_S = 5.0

T = TypeVar("T")
OnArrival = Callable[[operations_pb2.Operation], None]


class RunSubmitter:
    """Args:
    missing_seqs: before `next_seq`, and not here: whoever was to submit under them will not.
    describe: a few words on the run, for the status line.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: str,
        *,
        next_seq: int,
        missing_seqs: Iterable[int],
        describe: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._next_seq = next_seq
        self._describe = describe
        self._lock = threading.Lock()
        self._given_up = set(missing_seqs)
        self._uncertain: set[int] = set()  # of these, those that may have arrived
        self._skipping: asyncio.Task[None] | None = None

    @property
    def next_seq(self) -> int:
        return self._next_seq

    def take(self, count: int = 1) -> range:
        """Seqs in a row, each to be submitted under or given up."""
        with self._lock:
            first, self._next_seq = self._next_seq, self._next_seq + count
        return range(first, first + count)

    def submit(
        self,
        verb: str,
        bodies: Sequence[bytes],
        decode: Decode[T],
        *,
        seq: int | None = None,
        on_arrival: OnArrival | None = None,
    ) -> Coroutine[Any, Any, Future[T]]:
        """Takes the next seq now, unless one was taken before; the coroutine submits under it."""
        return self._submit(self.take()[0] if seq is None else seq, verb, bodies, decode, on_arrival)

    def claim(
        self, operation_id: str, verb: str, decode: Decode[T], *, on_arrival: OnArrival | None = None
    ) -> Future[T]:
        """The future of an operation of this run that was submitted at some time, by whomever."""
        return self._future(self._connection.claim(operation_id, on_arrival), decode, operation_id, verb)

    async def give_up(self, seq: int) -> None:
        """Leaves a seq that was taken without an operation; returns when the server has been told, or does not answer.

        Whoever submits next waits until it has.
        """
        self._given_up.add(seq)
        with suppress(FarstepError, TimeoutError):
            async with asyncio.timeout(GIVE_UP_S):
                await self._skip_given_up()

    async def close_gaps(self) -> None:
        """Returns when no operation waits for one that will not come from here.

        Raises:
            FarstepError: the server cannot be told.
        """
        await self._skip_given_up()

    async def aclose(self) -> None:
        if self._skipping is not None:
            self._skipping.cancel()
            await asyncio.gather(self._skipping, return_exceptions=True)

    async def _submit(
        self, seq: int, verb: str, bodies: Sequence[bytes], decode: Decode[T], on_arrival: OnArrival | None
    ) -> Future[T]:
        operation_id = f"{self._run_id}:{seq}"
        try:
            await self._skip_given_up()
            operation_id, pending = await self._connection.submit(
                paths.of(paths.VERB, run_id=self._run_id, verb=verb),
                bodies,
                params={"seq": str(seq)},
                on_arrival=on_arrival,
                expected_id=operation_id,
            )
        except ConflictError as error:
            await self.give_up(seq)
            raise self._overtaken(error) from None
        except TransportError as error:
            self._uncertain.add(seq)
            await self.give_up(seq)
            error.hint = f"whether {operation_id} arrived is not known; later, unfetched() has it if it did"
            raise
        except BaseException as error:  # a cancelled wait leaves a gap just as a refusal does
            if isinstance(error, asyncio.CancelledError):
                self._uncertain.add(seq)
            await self.give_up(seq)
            raise
        return self._future(pending, decode, operation_id, verb)

    def _future(self, pending: Pending, decode: Decode[T], operation_id: str, verb: str) -> Future[T]:
        return Future(
            pending,
            decode,
            operation_id=operation_id,
            verb=verb,
            connection=self._connection,
            describe=self._describe,
        )

    async def _skip_given_up(self) -> None:
        """Returns when there is nothing left to skip.

        Raises:
            FarstepError: the server cannot be told; later submissions would wait for what was given up.
        """
        if not self._given_up:
            return
        loop = asyncio.get_running_loop()
        if self._skipping is None or self._skipping.done() or self._skipping.get_loop() is not loop:
            self._skipping = loop.create_task(self._skip_all())
            self._skipping.add_done_callback(_retrieve)
        await asyncio.shield(self._skipping)

    async def _skip_all(self) -> None:
        path = paths.of(paths.VERB, run_id=self._run_id, verb=Verb.SKIP)
        while self._given_up:
            seq = min(self._given_up)
            try:
                await self._connection.submit_unheard(path, params={"seq": str(seq)})
            except ConflictError:  # there is no gap
                if seq in self._uncertain:
                    operation_id = f"{self._run_id}:{seq}"
                    log.warning("%s arrived, though its call failed: future(%r) is its", operation_id, operation_id)
            except NotFoundError:  # the run is gone: there is no gap
                pass
            self._given_up.discard(seq)
            self._uncertain.discard(seq)

    def _overtaken(self, error: ConflictError) -> ConflictError:
        return ConflictError(
            error.message,
            hint=f"another process goes on with this run, or this one was away for too long:"
            f" resume_run({self._run_id!r}) goes on where the run is",
            field=error.field,
        )


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
