"""A router's line to one replica: samples submitted, their outcomes collected by one shared long poll.

It chooses nothing and retries nothing. When the replica dies, starts anew or forgets a sample, everything in
flight on it fails with `ReplicaLost`, and the router goes elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import TypeVar

import httpx
from google.protobuf.message import DecodeError, Message

from farstep_proto import paths
from farstep_proto.errors import ApiError
from farstep_proto.v1 import common_pb2, operations_pb2, training_pb2
from farstep_proto.v1 import sampling_pb2 as pb

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

WATCH_INTERVAL_S = 0.5
_POLL_WAIT_S = 20.0
_TIMEOUT = httpx.Timeout(10.0, read=90.0, pool=None)
_LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=8)


class ReplicaLost(Exception):
    """The replica does not answer, or knows nothing of a sample that it accepted."""


class RelayedError(ApiError):
    """A replica's error as it came."""

    def __init__(self, error: common_pb2.Error) -> None:
        super().__init__(
            error.message,
            field=error.field,
            hint=error.hint,
            retry_after_s=error.retry_after_s if error.HasField("retry_after_s") else None,
            wanted_version=error.wanted_version if error.HasField("wanted_version") else None,
            newest_version=error.newest_version if error.HasField("newest_version") else None,
        )
        self.status = error.status
        self.error_class = error.error_class


class ReplicaLink:
    """One replica as the router sees it: whether it answers, what it serves, how much it has to do.

    Args:
        transport: for tests; how to reach the replica.
    """

    def __init__(self, url: str, *, key: str | None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self.is_healthy = False
        self.info: training_pb2.ServerInfo | None = None
        self.policies: dict[str, pb.PolicyState] = {}
        self._client_id = f"router-{uuid.uuid4().hex}"
        headers = {"Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF, paths.CLIENT_ID: self._client_id}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=_TIMEOUT, limits=_LIMITS, transport=transport
        )
        self._pending: dict[str, asyncio.Future[pb.SampleResponse]] = {}
        self._accepted: set[str] = set()  # those of the pending ones that the replica must know
        self._acks: list[str] = []
        self._has_pending = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def num_in_flight(self) -> int:
        return len(self._pending)

    async def run(self) -> None:
        """Watches the replica and collects outcomes until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._collect())
        finally:
            await self._http.aclose()

    async def sample(self, request: bytes, headers: Mapping[str, str]) -> pb.SampleResponse:
        """Submits a serialized SampleRequest and waits for its outcome; cancelling the wait cancels the sample.

        Raises:
            ReplicaLost: it must be sent to another replica.
            RelayedError: the replica's own answer.
        """
        key = uuid.uuid4().hex
        future: asyncio.Future[pb.SampleResponse] = asyncio.get_running_loop().create_future()
        self._pending[key] = future
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

    async def call(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """One request; the body of its answer.

        Raises:
            ReplicaLost: no answer.
            RelayedError: an answer with an error.
        """
        try:
            response = await self._http.request(method, path, content=body, headers=headers)
        except httpx.TransportError as error:
            self._lose(f"{type(error).__name__} {error}".strip())
            raise ReplicaLost(self.url) from error
        if response.is_error:
            raise _error_of(response)
        return response.content

    async def _watch(self) -> None:
        while True:
            try:
                self.info = training_pb2.ServerInfo.FromString(await self.call("GET", paths.INFO))
                await self.call("GET", paths.HEALTH)
                policies = pb.ListPoliciesResponse.FromString(await self.call("GET", paths.POLICIES)).policies
                self.policies = {state.model_path or state.run_id: state for state in policies}
                if not self.is_healthy:
                    log.info("replica %s answers", self.url)
                self.is_healthy = True
            except ReplicaLost:
                pass  # said where it was found
            except (RelayedError, DecodeError) as error:
                self._lose(str(error))
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _collect(self) -> None:
        while True:
            await self._has_pending.wait()
            if not self._pending:
                self._has_pending.clear()
                continue
            try:
                await self._poll()
            except ReplicaLost:
                self._has_pending.clear()  # until something is submitted again
            except (RelayedError, DecodeError) as error:
                log.warning("polling %s: %s", self.url, error)
                await asyncio.sleep(WATCH_INTERVAL_S)

    async def _poll(self) -> None:
        acks, self._acks = self._acks, []
        poll = operations_pb2.PollRequest(
            client_id=self._client_id, ack=acks, check=self._accepted, wait_s=_POLL_WAIT_S
        )
        answer = await self.call("POST", paths.POLL, poll.SerializeToString())
        response = operations_pb2.PollResponse.FromString(answer)
        for operation in response.finished:
            self._acks.append(operation.operation_id)
            self._settle(operation)
        for key in response.unknown:
            _fail(self._pending.get(key), ReplicaLost(f"{self.url} does not know {key}"))

    def _settle(self, operation: operations_pb2.Operation) -> None:
        future = self._pending.get(operation.operation_id)
        if future is None or future.done():
            return
        if operation.WhichOneof("outcome") == "sample":
            future.set_result(operation.sample)
        else:
            future.set_exception(RelayedError(operation.error))

    def _lose(self, reason: str) -> None:
        if self.is_healthy:
            log.warning("replica %s is lost: %s", self.url, reason)
        self.is_healthy = False
        for future in self._pending.values():
            _fail(future, ReplicaLost(self.url))

    def _spawn_cancel(self, key: str) -> None:
        async def cancel() -> None:
            try:
                await self.call("POST", paths.CANCEL.format(operation_id=key))
            except (ReplicaLost, RelayedError) as error:
                log.debug("cancelling %s: %s", key, error)

        task = asyncio.create_task(cancel())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _error_of(response: httpx.Response) -> RelayedError:
    error = common_pb2.Error()
    try:
        error.ParseFromString(response.content)
    except DecodeError:
        error.message = f"{response.request.url} answered {response.status_code} with something else than an error"
    error.status = error.status or response.status_code
    error.error_class = error.error_class or "InternalError"
    return RelayedError(error)


def _fail(future: asyncio.Future[pb.SampleResponse] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # whoever submits may not have come to wait for it yet
