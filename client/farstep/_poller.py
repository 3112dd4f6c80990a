"""The one long poll of a server: every outstanding operation's outcome comes through it.

Lives on the background loop. It polls while anything is outstanding, acknowledges what came with the next
poll, and asks after the ids that it believes in whenever the server may have lost them, or has not yet heard who
waits for them. What can be submitted again is, where a server lost it; nobody need know.

Invariant: a watched operation gets exactly one outcome: the server's, or an error of ours that says why
none will come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from farstep import _retry
from farstep._pending import Outcome, Pending
from farstep.errors import (
    ClientClosedError,
    FarstepError,
    RateLimitError,
    ServerError,
    ServerShutdownError,
    TransportError,
    UnknownRequestError,
)
from farstep_proto import paths
from farstep_proto.errors import Draining
from farstep_proto.v1 import operations_pb2 as pb

if TYPE_CHECKING:
    from farstep._transport import Transport

Submit = Callable[[], Awaitable[str]]
OnArrival = Callable[[pb.Operation], None]

WAIT_S = 30.0
ACK_DELAY_S = 0.1  # nothing outstanding: a next submission may soon carry the acknowledgements along
MAX_TIMES = 10
HASTY_S = 0.2  # an empty answer sooner than this means that the server does not park polls at present


class Poller:
    def __init__(self, transport: Transport, client_id: str) -> None:
        self._transport = transport
        self._client_id = client_id
        self._pending: dict[str, Pending] = {}
        self._again: dict[str, _Again] = {}
        self._repeating: set[asyncio.Task[None]] = set()
        self._early: dict[str, pb.Operation] = {}
        self._num_submitting = 0
        self._acks: list[str] = []
        self._claimed: set[str] = set()  # the server has not heard that this client waits for them
        self._parked: asyncio.Timeout | None = None
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

    def watch(self, operation_id: str, pending: Pending, *, again: Submit | None = None) -> None:
        """Args:
        again: submits it once more, under the same id, if the server loses it before it ends.
        """
        early = self._early.pop(operation_id, None)
        if early is not None and not (again and _is_lost(early)):
            pending.set(early)
            return
        self._pending[operation_id] = pending
        if again is not None:
            self._again[operation_id] = _Again(again)
        self._begin()
        if early is not None:
            self._settle(operation_id, early)

    def claim(self, operation_id: str, on_arrival: OnArrival | None) -> Pending:
        """Where the outcome of an operation will be that this client may never have submitted."""
        pending = self._pending.get(operation_id)
        if pending is None:
            pending = self._pending[operation_id] = Pending(on_arrival)
            self._ask_after(operation_id)
            self._begin()
        return pending

    def has_come(self, operation_id: str) -> bool:
        """Whether the outcome of a submission came that is still under way."""
        return operation_id in self._early

    def _begin(self) -> None:
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def outstanding(self) -> list[str]:
        return list(self._pending)

    async def aclose(self) -> None:
        """Outstanding operations go on at the server; their futures say that nobody listens any more."""
        if self._task is not None:
            self._task.cancel()
        for task in self._repeating:
            task.cancel()
        await asyncio.gather(*filter(None, [self._task]), *self._repeating, return_exceptions=True)
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
            self._backoff.reset()
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
            check=list(self._pending) if self._must_check else list(self._claimed),
            wait_s=wait_s,
        )
        started_at = time.monotonic()
        try:
            response = await self._send(message)
        except (TransportError, RateLimitError, ServerShutdownError, ServerError) as error:
            self._acks = acks + self._acks
            self._must_check = True
            await self._transport.rest(self._backoff, error)
            return
        except TimeoutError:
            self._acks = acks + self._acks
            return
        self._backoff.succeed()
        self._claimed.difference_update(message.check)
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
        try:
            async with asyncio.timeout(None) as self._parked:
                return await self._transport.attempt(request, pb.PollResponse)
        finally:
            self._parked = None

    def _deliver(self, response: pb.PollResponse) -> None:
        for operation in response.finished:
            self._acks.append(operation.operation_id)
            if operation.operation_id in self._pending:
                self._settle(operation.operation_id, operation)
            elif self._num_submitting:
                self._early[operation.operation_id] = operation
        for operation_id in response.unknown:
            if operation_id in self._pending:
                self._settle(operation_id, _unknown(operation_id))

    def _ask_after(self, operation_id: str) -> None:
        """Has the next poll say that this client waits for it; the one that is parked does not."""
        self._claimed.add(operation_id)
        if self._parked is not None and self._parked.when() is None:
            self._parked.reschedule(0.0)

    def _settle(self, operation_id: str, outcome: Outcome) -> None:
        """Its outcome, unless that says that it was lost and can be submitted again."""
        again = self._again.get(operation_id)
        is_lost = isinstance(outcome, UnknownRequestError) or _is_lost(outcome)
        if again is not None and is_lost and again.num_times < MAX_TIMES:
            self._repeat(operation_id, outcome)
            return
        self._again.pop(operation_id, None)
        self._pending.pop(operation_id).set(outcome)

    def _repeat(self, operation_id: str, outcome: Outcome) -> None:
        again = self._again[operation_id]
        if not again.is_under_way:
            again.is_under_way = True
            task = asyncio.get_running_loop().create_task(self._submit_again(operation_id, again, outcome))
            self._repeating.add(task)
            task.add_done_callback(self._repeating.discard)

    async def _submit_again(self, operation_id: str, again: _Again, outcome: Outcome) -> None:
        try:
            await asyncio.sleep(again.next_delay_s())
            await again.submit()
        except FarstepError as error:
            again.num_times, outcome = MAX_TIMES, error
        else:
            self._ask_after(operation_id)  # the same server may have it still, and believe that we have heard
            return
        finally:
            again.is_under_way = False
        if operation_id in self._pending:
            self._settle(operation_id, outcome)

    def _give_up(self, error: FarstepError) -> None:
        pending, self._pending = self._pending, {}
        self._again.clear()
        for each in pending.values():
            each.set(error)


@dataclass(slots=True)
class _Again:
    """What can be submitted once more, so often: it may be what the server dies of."""

    submit: Submit
    num_times: int = 0
    is_under_way: bool = False

    def next_delay_s(self) -> float:
        delay_s: float = min(_retry.REQUEST_RETRY.first_delay_s * 2.0**self.num_times, _retry.REQUEST_RETRY.max_delay_s)
        self.num_times += 1
        return delay_s


def _is_lost(outcome: Outcome) -> bool:
    """Whether it says that the server went down before the operation was done."""
    return isinstance(outcome, pb.Operation) and outcome.HasField("error") and outcome.error.status == Draining.status


def _unknown(operation_id: str) -> UnknownRequestError:
    return UnknownRequestError(
        f"the server no longer knows operation {operation_id}",
        hint="it was started anew, or the result was not fetched for too long; submit the work again",
    )
