"""The one long poll of a server: every outstanding operation's outcome comes through it.

Lives on the background loop. It polls while anything is outstanding, acknowledges what came with the next
poll, and asks about ids that it believes in whenever the server may have lost them.

Invariant: a watched operation gets exactly one outcome: the server's, or an error of ours that says why
none will come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from farstep import _retry
from farstep._pending import Pending
from farstep.errors import (
    ClientClosedError,
    FarstepError,
    RateLimitError,
    ServerShutdownError,
    TransportError,
    UnknownRequestError,
)
from farstep_proto import paths
from farstep_proto.v1 import operations_pb2 as pb

if TYPE_CHECKING:
    from farstep._transport import Transport

WAIT_S = 30.0
ACK_DELAY_S = 0.1  # nothing outstanding: a next submission may soon carry the acknowledgements along
HASTY_S = 0.2  # an empty answer sooner than this means that the server does not park polls at present


class Poller:
    def __init__(self, transport: Transport, client_id: str) -> None:
        self._transport = transport
        self._client_id = client_id
        self._pending: dict[str, Pending] = {}
        self._early: dict[str, pb.Operation] = {}
        self._num_submitting = 0
        self._acks: list[str] = []
        self._instance_id = ""
        self._must_check = False
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._backoff = _retry.Backoff(_retry.POLL_RETRY, what=f"polling {transport.url}")

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """While a submission is under way its outcome may come before its id does; it is kept that long."""
        self._num_submitting += 1
        try:
            yield
        finally:
            self._num_submitting -= 1
            if not self._num_submitting:
                self._early.clear()

    def watch(self, operation_id: str, pending: Pending) -> None:
        early = self._early.pop(operation_id, None)
        if early is not None:
            pending.set(early)
            return
        self._pending[operation_id] = pending
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def outstanding(self) -> list[str]:
        return list(self._pending)

    async def aclose(self) -> None:
        """Outstanding operations go on at the server; their futures say that nobody listens any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._give_up(ClientClosedError("the client was closed before the result came"))

    def orphan_after_fork(self) -> None:
        error = UnknownRequestError("this operation was submitted by the parent process", hint="wait for it there")
        for pending in self._pending.values():
            pending.orphan_after_fork(error)

    async def _run(self) -> None:
        try:
            while self._pending or self._acks:
                if not self._pending:
                    await self._pause()
                await self._poll_once()
        except FarstepError as error:
            self._give_up(error)
        except Exception as error:  # whatever it was, nobody may wait for ever
            self._give_up(FarstepError(f"polling {self._transport.url} failed: {error!r}"))
        finally:
            self._task = None

    async def _pause(self) -> None:
        """A poll sent at once would only be in the way of the submission that most often comes next."""
        self._wanted.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), ACK_DELAY_S)

    async def _poll_once(self) -> None:
        acks, self._acks = self._acks, []
        wait_s = WAIT_S if self._pending else 0.0
        message = pb.PollRequest(
            client_id=self._client_id,
            ack=acks,
            check=list(self._pending) if self._must_check else [],
            wait_s=wait_s,
        )
        started_at = time.monotonic()
        try:
            response = await self._send(message)
        except (TransportError, RateLimitError, ServerShutdownError) as error:
            self._acks = acks + self._acks
            self._must_check = True
            await asyncio.sleep(self._backoff.delay_s(error))
            return
        self._backoff.reset()
        self._deliver(response)
        is_empty = not response.finished and not response.unknown
        is_new_instance = response.instance_id != self._instance_id
        self._must_check = is_empty or (is_new_instance and bool(self._instance_id))
        self._instance_id = response.instance_id
        if is_empty and time.monotonic() - started_at < min(HASTY_S, wait_s):
            await asyncio.sleep(HASTY_S)

    async def _send(self, message: pb.PollRequest) -> pb.PollResponse:
        from farstep._transport import Lane, Request

        body = message.SerializeToString()
        request = Request("POST", paths.POLL, body=body, lane=Lane.POLL, wait_s=message.wait_s)
        return await self._transport.attempt(request, pb.PollResponse)

    def _deliver(self, response: pb.PollResponse) -> None:
        for operation in response.finished:
            self._acks.append(operation.operation_id)
            pending = self._pending.pop(operation.operation_id, None)
            if pending is not None:
                pending.set(operation)
            elif self._num_submitting:
                self._early[operation.operation_id] = operation
        for operation_id in response.unknown:
            pending = self._pending.pop(operation_id, None)
            if pending is not None:
                pending.set(_unknown(operation_id))

    def _give_up(self, error: FarstepError) -> None:
        pending, self._pending = self._pending, {}
        for each in pending.values():
            each.set(error)


def _unknown(operation_id: str) -> UnknownRequestError:
    return UnknownRequestError(
        f"the server no longer knows operation {operation_id}",
        hint="it was started anew, or the result was not fetched for too long; submit the work again",
    )
