"""One run's submissions: each gets the next seq, and none that failed is left as a gap.

The seq is taken on the calling thread, under a lock, so that operations run in the order of the calls. A
retry repeats it. A seq whose submission was refused, lost or interrupted is given up by `skip`, at once or
before the next submission, so that later operations do not wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from farstep._connection import Connection, path_of
from farstep._convert import Decode
from farstep.errors import FarstepError, RateLimitError, ServerShutdownError, TransportError
from farstep.future import Future
from farstep_proto import paths
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2

T = TypeVar("T")
OnArrival = Callable[[operations_pb2.Operation], None]


class RunSubmitter:
    """Args:
    describe: a few words on the run, for the status line.
    """

    def __init__(self, connection: Connection, run_id: str, *, next_seq: int, describe: Callable[[], str]) -> None:
        self._connection = connection
        self._run_id = run_id
        self._next_seq = next_seq
        self._describe = describe
        self._lock = threading.Lock()
        self._given_up: set[int] = set()

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

    async def give_up(self, seq: int) -> None:
        """Leaves a seq that was taken without an operation."""
        self._given_up.add(seq)
        await self._skip_given_up()

    async def _submit(
        self, seq: int, verb: str, bodies: Sequence[bytes], decode: Decode[T], on_arrival: OnArrival | None
    ) -> Future[T]:
        await self._skip_given_up()
        try:
            operation_id, pending = await self._connection.submit(
                path_of(paths.VERB, run_id=self._run_id, verb=verb),
                bodies,
                params={"seq": str(seq)},
                on_arrival=on_arrival,
            )
        except BaseException:  # a cancelled wait leaves a gap just as a refusal does
            await self.give_up(seq)
            raise
        return Future(
            pending,
            decode,
            operation_id=operation_id,
            verb=verb,
            connection=self._connection,
            describe=self._describe,
        )

    async def _skip_given_up(self) -> None:
        path = path_of(paths.VERB, run_id=self._run_id, verb=Verb.SKIP)
        while self._given_up:
            seq = self._given_up.pop()
            try:
                await self._connection.submit_once(path, b"", params={"seq": str(seq)})
            except (TransportError, RateLimitError, ServerShutdownError):
                self._given_up.add(seq)
                return
            except FarstepError:  # it arrived after all, or the run is gone: there is no gap
                continue
