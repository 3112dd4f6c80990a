"""A router's line to one replica: what it serves, by a parked request; samples, by one shared long poll.

It chooses nothing and retries nothing. When the replica dies, starts anew or forgets a sample, everything in
flight on it fails with `ReplicaLost`, and the router goes elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import httpx
from google.protobuf.message import DecodeError

from farstep_proto import paths
from farstep_proto.v1 import operations_pb2, training_pb2
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.router.replica_http import RelayedError, ReplicaHttp, ReplicaLost

log = logging.getLogger(__name__)

_JITTER = random.Random()  # its own: what a program draws from `random` must not depend on our retries

_POLL_WAIT_S = 20.0
_WATCH_WAIT_S = 5.0  # a replica that says nothing for so long, and half as long again, is lost
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


class ReplicaLink:
    """One replica as the router sees it: whether it answers, what it serves, how much it has to do.

    Args:
        on_change: called whenever any of this is another than before.
        transport: for tests; how to reach the replica.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        on_change: Callable[[], None] = lambda: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.is_healthy = False
        self.is_draining = False  # its own word
        self.is_leaving = False  # the router's
        self.info: training_pb2.ServerInfo | None = None
        self.policies: dict[str, pb.PolicyState] = {}
        self.num_in_flight = 0  # sequences
        self.trouble = ""
        self.on_change = on_change
        client_id = f"router-{uuid.uuid4().hex}"
        self._client_id = client_id
        self._http = ReplicaHttp(url, key=key, client_id=client_id, transport=transport)
        self._pending: dict[str, asyncio.Future[pb.SampleResponse]] = {}
        self._accepted: set[str] = set()  # those of the pending ones that the replica must know
        self._acks: list[str] = []
        self._has_pending = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def takes_requests(self) -> bool:
        return self.is_healthy and not self.is_draining and not self.is_leaving

    def describe(self) -> pb.ReplicaState:
        if self.is_leaving:
            state = "leaving"
        elif self.is_healthy:
            state = "draining" if self.is_draining else "serving"
        else:
            state = "lost" if self.trouble else "joining"
        return pb.ReplicaState(
            url=self.url, state=state, num_in_flight=self.num_in_flight, message="" if self.is_healthy else self.trouble
        )

    async def run(self) -> None:
        """Watches the replica and collects outcomes until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._collect())
        finally:
            self._lose("the router lets it go")
            await self._http.close()

    async def sample(self, request: bytes, headers: Mapping[str, str], *, num_sequences: int = 1) -> pb.SampleResponse:
        """Submits a serialized SampleRequest and waits for its outcome; cancelling the wait cancels the sample.

        Raises:
            ReplicaLost: it must be sent to another replica.
            RelayedError: the replica's own answer.
        """
        key = uuid.uuid4().hex
        future: asyncio.Future[pb.SampleResponse] = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        with self.busy(num_sequences):
            try:
                await self.call("POST", f"{paths.SAMPLES}?key={key}", request, headers=headers)
                self._accepted.add(key)
                self._has_pending.set()
                return await future
            except asyncio.CancelledError:
                self._spawn_cancel(key)
                raise
            finally:
                self._pending.pop(key, None)
                self._accepted.discard(key)

    @contextmanager
    def busy(self, num_sequences: int) -> Iterator[None]:
        """Counts sequences as in flight inside the block."""
        self.num_in_flight += num_sequences
        try:
            yield
        finally:
            self.num_in_flight -= num_sequences
            if not self.takes_requests:
                self.on_change()  # somebody may wait for the last of them

    async def call(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """One request; the body of its answer. Raises ReplicaLost and RelayedError."""
        try:
            return await self._http.call(method, path, body, headers=headers)
        except ReplicaLost as error:
            self._lose(str(error))
            raise

    @property
    def http(self) -> ReplicaHttp:
        return self._http

    async def _watch(self) -> None:
        """Asks what it serves and is answered when that changes; less and less often where nobody answers."""
        revision, retry_s = 0, _FIRST_RETRY_S
        while True:
            try:
                if not self.is_healthy:
                    self.info = training_pb2.ServerInfo.FromString(await self._http.call("GET", paths.INFO))
                    revision = 0
                state = await self._ask(revision, wait_s=_WATCH_WAIT_S if self.is_healthy else 0.0)
            except ReplicaLost as error:
                self._lose(str(error))
            except (RelayedError, DecodeError) as error:
                self._lose(f"{self.url}: {error}")
            else:
                revision, retry_s = state.revision, _FIRST_RETRY_S
                self._take(state)
                if not state.draining:
                    continue
            await asyncio.sleep(retry_s * _JITTER.uniform(0.5, 1.0))
            retry_s = min(2 * retry_s, _LAST_RETRY_S)

    async def _ask(self, revision: int, *, wait_s: float) -> pb.ListPoliciesResponse:
        path = f"{paths.POLICIES}?after={revision}&wait_s={wait_s}"
        return pb.ListPoliciesResponse.FromString(
            await self._http.call("GET", path, read_timeout_s=1.5 * _WATCH_WAIT_S)
        )

    def _take(self, state: pb.ListPoliciesResponse) -> None:
        if not self.is_healthy:
            log.info("replica %s answers", self.url)
        if state.draining and not self.is_draining:
            log.info("replica %s drains", self.url)
        self.policies = {policy.model_path or policy.run_id: policy for policy in state.policies}
        self.is_healthy, self.is_draining, self.trouble = True, state.draining, ""
        self.on_change()

    async def _collect(self) -> None:
        while True:
            await self._has_pending.wait()
            if not self._pending and not self._acks:
                self._has_pending.clear()
                continue
            try:
                await self._poll()
            except ReplicaLost:
                self._has_pending.clear()  # until something is submitted again
            except (RelayedError, DecodeError) as error:
                log.warning("polling %s: %s", self.url, error)
                await asyncio.sleep(_FIRST_RETRY_S)

    async def _poll(self) -> None:
        acks, self._acks = self._acks, []
        wait_s = _POLL_WAIT_S if self._pending else 0.0  # else it only brings the last acknowledgements
        poll = operations_pb2.PollRequest(client_id=self._client_id, ack=acks, check=self._accepted, wait_s=wait_s)
        answer = await self.call("POST", paths.POLL, poll.SerializeToString())
        response = operations_pb2.PollResponse.FromString(answer)
        for operation in response.finished:
            self._acks.append(operation.operation_id)
            self._settle(operation)
        for key in response.unknown:
            self._accepted.discard(key)
            _fail(self._pending.pop(key, None), ReplicaLost(f"{self.url} does not know {key}"))

    def _settle(self, operation: operations_pb2.Operation) -> None:
        """Nobody asks after it any more: what is asked after once it was acknowledged comes again."""
        self._accepted.discard(operation.operation_id)
        future = self._pending.pop(operation.operation_id, None)
        if future is None or future.done():
            return
        if operation.WhichOneof("outcome") == "sample":
            future.set_result(operation.sample)
        else:
            future.set_exception(RelayedError(operation.error))

    def _lose(self, reason: str) -> None:
        if self.is_healthy:
            log.warning("replica %s is lost: %s", self.url, reason)
        self.is_healthy, self.trouble = False, reason
        self._acks = []
        for future in self._pending.values():
            _fail(future, ReplicaLost(reason))
        self.on_change()

    def _spawn_cancel(self, key: str) -> None:
        async def cancel() -> None:
            try:
                await self.call("POST", paths.CANCEL.format(operation_id=key))
            except (ReplicaLost, RelayedError) as error:
                log.debug("cancelling %s: %s", key, error)

        task = asyncio.create_task(cancel())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _fail(future: asyncio.Future[pb.SampleResponse] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # whoever submits may not have come to wait for it yet
