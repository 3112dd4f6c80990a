"""The gateway's line to one server: submissions, and one shared long poll that brings every outcome.

An outcome that came is *held*: the server does not send it again, and keeps it as if nobody had fetched it until
`fetched` says that somebody has. So what a gateway that died knew, its successor can ask for.

Invariant: what `outcome` gives is what the server said of that operation, or that the server does not know it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from farstep_infra.gateway.server_http import NotNow, Relayed, call
from farstep_proto import paths
from farstep_proto.errors import NotFound
from farstep_proto.v1 import operations_pb2 as pb

log = logging.getLogger(__name__)

CLIENT_ID = "tinker-gateway"  # the same over every restart: what is delivered late finds its way
SUBMIT_S = 40.0  # below the minute that the SDK waits for an answer
_POLL_S = 25.0
_ACK_DELAY_S = 0.2
_SUBMITTED_AT_ONCE = 16  # more are no faster, and httpx's pool is slow where it has many connections
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 2.0
_HASTY_S = 0.1  # an empty answer sooner than this means that the server does not park polls at present
_MAX_KEPT_BYTES = 256 << 20  # of outcomes that nobody fetched; older ones are asked for again
_DONE = (pb.OPERATION_STATE_SUCCEEDED, pb.OPERATION_STATE_FAILED, pb.OPERATION_STATE_CANCELLED)

Wake = Callable[[float], Awaitable[None]]


async def _nobody(wait_s: float) -> None:
    """Nobody to wake."""


@dataclass(frozen=True, slots=True)
class Submission:
    """An operation on its way to a server.

    Args:
        path: with its query, but for the number of the part.
        parts: the body; in several, where it is larger than the server takes at once.
        project: for whom the gateway asks.
        wake: has the server come up, within so many seconds, where it rests.
    """

    operation_id: str
    path: str
    parts: Sequence[bytes]
    project: str
    headers: Mapping[str, str] = field(default_factory=dict)
    wake: Wake = _nobody

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.parts))


class Channel:
    """
    Args:
        client: carries the installation's key.
        client_id: who fetches the outcomes.
        on_outcome: hears of each that was waited for; one without a state says that the server does not know it.
    """

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        *,
        client_id: str = CLIENT_ID,
        on_outcome: Callable[[pb.Operation], None] = lambda operation: None,
    ) -> None:
        self.url = url
        self._on_outcome = on_outcome
        self.trouble = ""  # why the server does not answer just now
        self._client = client
        self._client_id = client_id
        self._waited: dict[str, asyncio.Event] = {}  # operations whose outcome is to come
        self._accepted: set[str] = set()  # those of them that the server must know
        self._outcomes: OrderedDict[str, pb.Operation] = OrderedDict()
        self._num_bytes = 0
        self._held: list[str] = []
        self._acks: list[str] = []
        self._wanted = asyncio.Event()
        self._room = asyncio.Semaphore(_SUBMITTED_AT_ONCE)
        self._must_check = False
        self._is_released = False

    async def submit(self, submission: Submission, *, within_s: float = SUBMIT_S) -> None:
        """Returns when the server has taken it; the same again is the same operation.

        Raises:
            NotNow: it could not, for all that time.
            Relayed: it refuses.
        """
        operation_id = submission.operation_id
        is_known = operation_id in self._outcomes
        if not is_known:
            self._waited.setdefault(operation_id, asyncio.Event())
            self._wanted.set()
        try:
            await self._insist(submission, deadline=time.monotonic() + within_s)
        except BaseException:
            if not is_known and operation_id not in self._accepted:
                self._waited.pop(operation_id, None)
            raise
        if operation_id in self._waited:
            self._accepted.add(operation_id)

    async def outcome(self, operation_id: str, *, wait_s: float) -> pb.Operation | None:
        """What became of an operation, whoever submitted it; None where that is not known after `wait_s` seconds.

        Raises:
            NotFound: the server does not know it, or no longer.
        """
        if operation_id not in self._outcomes and operation_id not in self._waited:
            found = await self._ask(operation_id)
            if found is not None:
                return found
        event = self._waited.get(operation_id)
        if event is not None and not self._is_released:
            try:
                await asyncio.wait_for(event.wait(), wait_s)
            except TimeoutError:
                return None
        found = self._outcomes.get(operation_id)
        if found is not None and found.state == pb.OPERATION_STATE_UNSPECIFIED:
            self._drop(operation_id)
            raise NotFound(f"the server no longer knows operation {operation_id}", field="operation_id")
        return found

    def fetched(self, operation_id: str) -> None:
        """The client has that outcome: the server need not keep it for long."""
        self._drop(operation_id)
        self._acks.append(operation_id)
        self._wanted.set()

    async def cancel(self, operation_id: str, *, project: str) -> bool:
        """Drops an operation that has not begun; whether it did. Raises as `call`."""
        path = paths.of(paths.CANCEL, operation_id=operation_id)
        return pb.CancelResponse.FromString(await self.call("POST", path, project=project)).cancelled

    async def call(
        self, method: str, path: str, body: bytes = b"", *, project: str, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Any other request, for a project; raises NotNow and Relayed."""
        return await call(
            self._client, method, self.url + path, body, headers={**(headers or {}), paths.ON_BEHALF_OF: project}
        )

    def release(self) -> None:
        """Lets everybody go who waits for an outcome, now and later."""
        self._is_released = True
        for event in self._waited.values():
            event.set()

    async def run(self) -> None:
        """Collects outcomes until it is cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._until_worthwhile()
            try:
                await self._poll()
            except (NotNow, Relayed) as error:
                self._must_check, self.trouble = True, error.message
                log.debug("polling %s: %s", self.url, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            except Exception:  # whatever it was, others wait for what comes after it
                log.exception("polling %s", self.url)
                await asyncio.sleep(_LAST_PAUSE_S)
            else:
                self.trouble, pause_s = "", _FIRST_PAUSE_S

    async def _until_worthwhile(self) -> None:
        """Until an outcome is to come, or it is time to say what was fetched: a submission may soon take that along."""
        while not self._waited and not self._acks and not self._held:
            self._wanted.clear()
            await self._wanted.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_ACK_DELAY_S):
                while not self._waited:
                    self._wanted.clear()
                    await self._wanted.wait()

    async def _insist(self, submission: Submission, *, deadline: float) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._submit_once(submission)
            except NotNow as error:
                left_s = deadline - time.monotonic()
                if left_s <= pause_s:
                    raise
                await submission.wake(min(left_s, 5.0))
                await asyncio.sleep(min(error.retry_after_s or pause_s, pause_s))
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    async def _submit_once(self, submission: Submission) -> None:
        headers = {**submission.headers, paths.CLIENT_ID: self._client_id}
        num_parts = len(submission.parts)
        awaits_parts = True
        while awaits_parts:  # what a server lost of them meanwhile is sent again
            for index, part in enumerate(submission.parts):
                path = submission.path + (f"&part={index}&parts={num_parts}" if num_parts > 1 else "")
                async with self._room:
                    answer = await self.call("POST", path, part, project=submission.project, headers=headers)
                awaits_parts = pb.Accepted.FromString(answer).awaits_parts

    async def _ask(self, operation_id: str) -> pb.Operation | None:
        """The outcome of an operation that this gateway did not submit, or has dropped; None: it is to come."""
        path = paths.of(paths.OPERATION, operation_id=operation_id)
        try:
            answer = await call(self._client, "GET", self.url + path)
        except Relayed as error:
            if error.status == NotFound.status:
                raise NotFound(error.message, field="operation_id") from error
            raise
        operation = pb.Operation.FromString(answer)
        if operation.state in _DONE:
            return operation
        self._waited.setdefault(operation_id, asyncio.Event())
        self._accepted.add(operation_id)
        self._wanted.set()
        return None

    async def _poll(self) -> None:
        acks, self._acks = self._acks, []
        held, self._held = self._held, []
        check = list(self._accepted) if self._must_check else []
        wait_s = _POLL_S if self._waited and not self._is_released else 0.0
        message = pb.PollRequest(client_id=self._client_id, ack=acks, held=held, check=check, wait_s=wait_s)
        started_at = time.monotonic()
        try:
            answer = await call(
                self._client, "POST", self.url + paths.POLL, message.SerializeToString(), answer_s=2 * _POLL_S
            )
        except BaseException:
            self._acks, self._held = acks + self._acks, held + self._held
            raise
        response = pb.PollResponse.FromString(answer)
        for operation in response.finished:
            self._held.append(operation.operation_id)
            self._keep(operation)
        for operation_id in response.unknown:
            if operation_id in self._waited:
                self._keep(pb.Operation(operation_id=operation_id))
        is_empty = not response.finished and not response.unknown
        self._must_check = is_empty
        is_to_park = wait_s > 0 or self._is_released
        if is_empty and is_to_park and time.monotonic() - started_at < _HASTY_S:
            await asyncio.sleep(_HASTY_S)

    def _keep(self, operation: pb.Operation) -> None:
        operation_id = operation.operation_id
        self._drop(operation_id)
        self._outcomes[operation_id] = operation
        self._num_bytes += operation.ByteSize()
        self._accepted.discard(operation_id)
        if (event := self._waited.pop(operation_id, None)) is not None:
            event.set()
            self._on_outcome(operation)
        while self._num_bytes > _MAX_KEPT_BYTES and len(self._outcomes) > 1:
            self._drop(next(iter(self._outcomes)))

    def _drop(self, operation_id: str) -> None:
        if (operation := self._outcomes.pop(operation_id, None)) is not None:
            self._num_bytes -= operation.ByteSize()
