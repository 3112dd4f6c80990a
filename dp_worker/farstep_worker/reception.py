"""Submissions on their way in: checked, written down, and then entered, each operation once.

It lives on the event loop. What it lets in is the queue's to order and the torch thread's to run.

Invariant: what can refuse a submission comes before it is written down; what was written down is entered or taken back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from farstep_proto.errors import ApiError, TooManyRequests
from farstep_proto.paths import PROTOBUF, Verb
from farstep_proto.v1 import operations_pb2
from farstep_serving.operations import OperationTable
from farstep_worker.arrivals import Arrivals
from farstep_worker.assembly import Address, Assembler, digest_of
from farstep_worker.journal.records import Part
from farstep_worker.keeper import Keeper
from farstep_worker.operations import OperationQueue, Work
from farstep_worker.registry import RunRegistry
from farstep_worker.submission import Call

T = TypeVar("T")

INLINE_BYTES = 64 << 10  # what is decoded and encoded on the loop: another thread would cost more than it saves


class Reception:
    """Args:
    on_entered: hears of each operation, or part of one, that was let in.
    on_crowded: is called before a submission is refused for want of room, and may make some.
    is_computing: whether an operation is being computed, which is before all that wait.
    """

    def __init__(
        self,
        registry: RunRegistry,
        queue: OperationQueue,
        table: OperationTable,
        keeper: Keeper,
        arrivals: Arrivals,
        *,
        on_entered: Callable[[], None],
        on_crowded: Callable[[], None],
        is_computing: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._table = table
        self._keeper = keeper
        self._arrivals = arrivals
        self._on_entered = on_entered
        self._on_crowded = on_crowded
        self._is_computing = is_computing
        self.assembler = Assembler()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def check_room(self, address: Address, *, num_bytes: int) -> None:
        """Refuses a body of this size before it is read; raises as the queue does."""
        own = self.assembler.size_of(address)
        held = self.assembler.num_bytes - own
        check = partial(self._queue.check_room, address.run_id, address.seq, num_bytes=own + num_bytes, held_bytes=held)
        try:
            check()
        except TooManyRequests:
            self._on_crowded()
            check()
        self._keeper.check_room(num_bytes)

    async def submit(
        self,
        address: Address,
        verb: str,
        body: bytes,
        *,
        client_id: str,
        parse: Callable[[], Call],
        content_type: str = PROTOBUF,
    ) -> operations_pb2.Accepted:
        """Enters an operation, or a part of one; the same again is the same operation.

        `parse` turns the body into a checked call; it runs on another thread where the body is large.

        Raises:
            InvalidInput: the body, or parts that do not belong together.
            Conflict: the seq is taken by other content, or was passed.
            TooManyRequests, Draining: not now.
            StorageFull: it cannot be written down.
        """
        lock = self._locks.setdefault(address.operation_id, asyncio.Lock())
        async with lock:  # the same may come twice at once, and parts together
            return await self._submit(address, verb, body, client_id, parse, content_type)

    async def _submit(
        self, address: Address, verb: str, body: bytes, client_id: str, parse: Callable[[], Call], content_type: str
    ) -> operations_pb2.Accepted:
        digest = await _beside(len(body), lambda: digest_of(verb, body, address))
        if not await self._is_known(address, verb, digest, client_id):
            started = time.monotonic()
            call = await _beside(len(body), parse)
            entered = time.monotonic()
            self._check(address, call, num_bytes=len(body))
            part = Part(
                address.run_id, address.seq, address.part, address.num_parts, verb, content_type, digest, len(body),
                client_id, body,
            )  # fmt: skip
            await self._keeper.add_part(part)
            await self._enter(part, address, call, now=entered)
            self._arrivals.note(address.operation_id, verb, entered=entered, decode_s=entered - started)
        return operations_pb2.Accepted(
            operation_id=address.operation_id,
            queue_place=self._queue.place(address.operation_id) + self._is_computing(),
            awaits_parts=self.assembler.is_open(address.operation_id),
        )

    async def _is_known(self, address: Address, verb: str, digest: bytes, client_id: str) -> bool:
        if verb == Verb.SKIP:
            self.forget_parts(address.operation_id)  # the rest of them will not come
        if self.assembler.has(address, digest):
            return True
        had = self._table.clients(address.operation_id)
        if not self._table.repeats(address.operation_id, digest, client_id=client_id):
            return False
        if client_id not in had:
            await self._keeper.add_client(address.operation_id, client_id)
        return True

    def forget_parts(self, operation_id: str) -> None:
        """The rest of an operation will not come."""
        if self.assembler.forget(operation_id):
            self._arrivals.forget(operation_id)
            self._keeper.withdraw_all(operation_id)

    def _check(self, address: Address, call: Call, *, num_bytes: int) -> None:
        """Whatever can refuse, before anything is written down."""
        self._registry.find(address.run_id)  # it may have been deleted while this came in
        self._queue.check_seq(address.run_id, address.seq)
        self.check_room(address, num_bytes=num_bytes)
        self.assembler.check(address, call)

    async def _enter(self, part: Part, address: Address, call: Call, *, now: float) -> None:
        """All or nothing: what has come to refuse it while it was written down takes it back."""
        try:
            self._enter_now(part, address, call, now=now)
        except ApiError:
            await self._keeper.withdraw(part)
            raise

    def _enter_now(self, part: Part, address: Address, call: Call, *, now: float) -> None:
        self._registry.find(address.run_id)
        self._queue.check_seq(address.run_id, address.seq)
        self._queue.check_room(address.run_id, address.seq, num_bytes=part.num_bytes)
        assembled = self.assembler.add(address, call, digest=part.digest, num_bytes=part.num_bytes, now=now)
        if assembled is None:
            self._queue.touch_gap(address.run_id, address.seq, now=now)
        else:
            self._queue.put(Work(address.run_id, address.seq, assembled.call, assembled.num_bytes), now=now)
            self._table.open(address.operation_id, client_id=part.client_id, verb=part.verb, digest=assembled.digest)
        self._on_entered()


async def _beside(num_bytes: int, act: Callable[[], T]) -> T:
    """Does something with a body of that size, beside the loop where that is worth it."""
    return act() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(act)
