"""Requests from the router to one replica, and their errors in the router's own terms."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from google.protobuf.message import DecodeError

from farstep_proto import paths
from farstep_proto.errors import ApiError, Internal
from farstep_proto.v1 import common_pb2

_TIMEOUT = httpx.Timeout(10.0, read=90.0, pool=None)
_STREAM_READ_S = 90.0  # a replica says something every ten seconds, once it has begun
_LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=8)
_STREAM_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=8)


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


class NobodyLeft(Internal):
    """No replica takes requests, or each that does was tried."""

    def __init__(self) -> None:
        super().__init__("no replica answers", hint="look at the replicas' logs", retry_after_s=1.0)
        self.status = 503


class ReplicaHttp:
    """The connections to one replica.

    Args:
        transport: for tests; how to reach the replica.
    """

    def __init__(
        self, url: str, *, key: str | None, client_id: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url = url
        headers = {"Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF, paths.CLIENT_ID: client_id}
        if key:
            headers["Authorization"] = f"Bearer {key}"

        # Replicas are addressed by whoever runs the fleet: a proxy in the environment is not for them.
        def client(limits: httpx.Limits) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits, transport=transport, trust_env=False
            )

        self._http = client(_LIMITS)
        self._streams = client(_STREAM_LIMITS)  # each holds a connection; short requests never wait for them

    async def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        read_timeout_s: float | None = None,
    ) -> bytes:
        """One request; the body of its answer.

        Raises:
            ReplicaLost: no answer.
            RelayedError: an answer with an error.
        """
        timeout = _TIMEOUT if read_timeout_s is None else httpx.Timeout(10.0, read=read_timeout_s, pool=None)
        try:
            response = await self._http.request(method, path, content=body, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            raise ReplicaLost(f"{self._url}: {type(error).__name__} {error}".strip()) from error
        if response.is_error:
            raise _error_of(response, response.content)
        return response.content

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, body: bytes, *, headers: Mapping[str, str], wait_s: float
    ) -> AsyncIterator[httpx.Response]:
        """One request whose answer is read as it comes, `wait_s` later than others; leaving the block ends it.

        Raises:
            ReplicaLost: no answer, or one that breaks off.
            RelayedError: an answer with an error.
        """
        try:
            timeout = httpx.Timeout(10.0, read=_STREAM_READ_S + wait_s, pool=None)
            async with self._streams.stream(method, path, content=body, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    raise _error_of(response, await response.aread())
                yield response
        except httpx.TransportError as error:
            raise ReplicaLost(f"{self._url}: {type(error).__name__} {error}".strip()) from error

    async def close(self) -> None:
        await self._http.aclose()
        await self._streams.aclose()


def _error_of(response: httpx.Response, content: bytes) -> RelayedError:
    error = common_pb2.Error()
    try:
        error.ParseFromString(content)
    except DecodeError:
        error = common_pb2.Error(
            message=f"{response.request.url} answered {response.status_code} with something else than an error"
        )
    error.status = error.status or response.status_code
    error.error_class = error.error_class or "InternalError"
    return RelayedError(error)
