"""One server, as this process sees it: a transport, a poll, and what the server says it is.

All clients of a process that speak to the same server with the same key share one connection, and so one
long poll. A server that a control plane named is the same one wherever it moves. Who takes a connection gives it
back; the last to do so closes it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from farstep import _loop
from farstep._address import Address, Origin
from farstep._awake import clock
from farstep._keep_alive import KeepAlive
from farstep._pending import Pending
from farstep._poller import Poller
from farstep._retry import Backoff
from farstep._settings import ApiKey
from farstep.errors import ConflictError, FarstepError, ResultTimeout, ServerError
from farstep_proto import paths
from farstep_proto.v1 import operations_pb2, sampling_pb2, training_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from farstep._transport import Transport

M = TypeVar("M", bound=Message)

MAX_PARKED_S = 30.0
HEALTH_S = 5.0
STREAM_WAIT_S = 60.0  # for the gate, until the first word

MAX_UPLOADS = 10  # of one operation's parts, by a server that loses those it had

_open: dict[tuple[Origin | str, str | None], Connection] = {}
_open_lock = threading.Lock()
_all: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """Made by `take`, ended by `release`. Everything async here runs on the background loop."""

    _is_alive: bool  # whether it holds its session's keep-alive
    _poller: Poller

    def __init__(self, address: Address, key: ApiKey) -> None:
        self._given = address
        self.key = key
        self.num_users = 0
        self.info: training_pb2.ServerInfo | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._begin()
        _all.add(self)

    @classmethod
    def take(cls, address: Address, key: ApiKey) -> Connection:
        with _open_lock:
            connection = _open.get((address.identity, key.secret))
            if connection is None:
                connection = _open[address.identity, key.secret] = cls(address, key)
            connection.num_users += 1
            return connection

    @property
    def url(self) -> str:
        return self._transport.url

    @property
    def address(self) -> Address:
        """Where it is now."""
        return replace(self._given, url=self.url)

    async def release(self) -> None:
        with _open_lock:
            self.num_users -= 1
            if self.num_users:
                return
            _open.pop((self._given.identity, self.key.secret), None)
        await self._aclose()

    async def call(
        self,
        method: str,
        path: str,
        reply: type[M],
        *,
        message: Message | None = None,
        params: Mapping[str, str] | None = None,
        budget_s: float | None = None,
        wait_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> M:
        """A plain request; one with `wait_s` is parked by the server for as long as that."""
        from farstep._transport import Lane, Request

        self._begin_use()
        query = dict(params or {})
        if wait_s is not None:
            query["wait_s"] = f"{min(wait_s, MAX_PARKED_S):.3f}"
        request = Request(
            method,
            path,
            body=message.SerializeToString() if message is not None else b"",
            params=query,
            headers=headers or {},
            lane=Lane.PARKED if wait_s else Lane.SHORT,
            wait_s=wait_s or 0.0,
            repeatable=repeatable,
        )
        return await self._transport.call(request, reply, budget_s=budget_s)

    async def submit(
        self,
        path: str,
        bodies: Sequence[bytes],
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        on_arrival: Callable[[operations_pb2.Operation], None] | None = None,
        expected_id: str = "",
        again: bool = False,
    ) -> tuple[str, Pending]:
        """Submits one operation, in as many parts as there are bodies: its id, and where its outcome will be.

        Args:
            expected_id: the operation's, where it is known beforehand.
            again: a server that lost the operation before it ended gets it once more.
        """
        self._begin_use()
        poller = self._poller

        async def send() -> str:
            return await self._send(path, bodies, params=params, headers=headers or {})

        with poller.submitting():
            try:
                operation_id = await send()
            except ConflictError:
                if not poller.has_come(expected_id):  # it was done, and forgotten before the repetition arrived
                    raise
                operation_id = expected_id
            pending = Pending(on_arrival)
            poller.watch(operation_id, pending, again=send if again else None)
            return operation_id, pending

    async def _send(
        self, path: str, bodies: Sequence[bytes], *, params: Mapping[str, str], headers: Mapping[str, str]
    ) -> str:
        """The id of the operation, when the server has all of it."""
        from farstep._transport import Request

        headers = {paths.CLIENT_ID: self.client_id, **headers}
        for _ in range(MAX_UPLOADS):
            for part, body in enumerate(bodies):
                query = dict(params)
                if len(bodies) > 1:
                    query |= {"part": str(part), "parts": str(len(bodies))}
                request = Request("POST", path, body=body, params=query, headers=headers)
                accepted = await self._transport.call(request, operations_pb2.Accepted)
            if not accepted.awaits_parts:
                return accepted.operation_id
        raise ServerError(f"{self.url} has lost parts of the same operation {MAX_UPLOADS} times")

    async def submit_unheard(self, path: str, *, params: Mapping[str, str]) -> None:
        """Submits an empty message; its outcome is for nobody."""
        self._begin_use()
        await self._send(path, [b""], params=params, headers={})

    def claim(self, operation_id: str, on_arrival: Callable[[operations_pb2.Operation], None] | None) -> Pending:
        """Where the outcome of an operation will be that somebody submitted at some time."""
        self._begin_use()
        return self._poller.claim(operation_id, on_arrival)

    async def stream(
        self, path: str, body: bytes, *, headers: Mapping[str, str]
    ) -> AsyncGenerator[sampling_pb2.SampleEvent, None]:
        """The events of one request as they come, tried a single time; closing the generator ends the request."""
        from farstep._transport import Request

        self._begin_use()
        request = Request("POST", path, body=body, headers=headers, wait_s=STREAM_WAIT_S)
        async with aclosing(self._transport.stream(request)) as events:
            async for event in events:
                yield event

    async def rest(self, backoff: Backoff, error: FarstepError, *, at_least_s: float = 0.0) -> None:
        """Between two attempts of a caller who repeats them himself; raises when it makes no sense any more."""
        await self._transport.rest(backoff, error, at_least_s=at_least_s)

    async def load_info(self, *, budget_s: float | None = None) -> training_pb2.ServerInfo:
        if self.info is None:
            self.info = await self.call("GET", paths.INFO, training_pb2.ServerInfo, budget_s=budget_s)
        return self.info

    async def look(self, operation_id: str, *, budget_s: float | None = None) -> operations_pb2.Operation:
        """An operation as it stands now."""
        path = paths.of(paths.OPERATION, operation_id=operation_id)
        return await self.call("GET", path, operations_pb2.Operation, budget_s=budget_s)

    async def cancel(self, operation_id: str) -> bool:
        path = paths.of(paths.CANCEL, operation_id=operation_id)
        return (await self.call("POST", path, operations_pb2.CancelResponse)).cancelled

    async def is_healthy(self) -> bool:
        try:
            await self.check_health(HEALTH_S)
        except FarstepError:
            return False
        return True

    async def check_health(self, budget_s: float) -> None:
        """Returns when the server answers and takes work.

        Raises:
            ResultTimeout: it did neither within the budget.
        """
        self._begin_use()
        try:
            async with asyncio.timeout(budget_s):
                await self._transport.ping(paths.HEALTH, budget_s=budget_s)
        except (FarstepError, TimeoutError) as error:
            reason = str(error) or "no answer"
            raise ResultTimeout(f"{self.url} was not ready within {budget_s:g} s: {reason}") from error

    def outstanding(self) -> list[str]:
        """Ids of the operations whose outcome has not come."""
        return self._poller.outstanding()

    def wake(self) -> None:
        """This process has slept: who knows what became of the connections."""
        if self._pid == os.getpid():
            self._transport.renew()

    async def _aclose(self) -> None:
        if self._pid == os.getpid() and self._is_alive and self._given.origin is not None:
            self._is_alive = False
            KeepAlive.release(self._given.origin, self.key)
        await self._poller.aclose()
        await self._transport.aclose()

    def _begin(self) -> None:
        from farstep._transport import Transport  # httpx takes a third of the import time: wait until it is needed

        self._pid = os.getpid()
        self._is_alive = False
        self.client_id = uuid.uuid4().hex
        self._transport: Transport = Transport(self._given.url, self.key, origin=self._given.origin)
        self._poller = Poller(self._transport, self.client_id)

    def _begin_use(self) -> None:
        """Before every request. In a forked child the sockets are the parent's: leave them alone and use new ones."""
        if self._pid != os.getpid():
            self._begin()
        if self._given.origin is not None and not self._is_alive:
            self._is_alive = True
            KeepAlive.hold(self._given.origin, self.key)

    def orphan_after_fork(self) -> None:
        self._poller.orphan_after_fork()


async def _close_all() -> None:
    for connection in list(_all):
        await connection._aclose()


def _forget_after_fork() -> None:
    global _open_lock
    _open_lock = threading.Lock()
    for connection in list(_all):
        connection.orphan_after_fork()


def _wake_all() -> None:
    for connection in list(_all):
        connection.wake()


_loop.at_exit(_close_all)
clock.on_wake(_wake_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
