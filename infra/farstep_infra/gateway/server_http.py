"""One request to a trainer or sampler, and its refusals in the gateway's own terms."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from google.protobuf.message import DecodeError

from farstep_proto import paths
from farstep_proto.errors import ApiError, Unavailable
from farstep_proto.v1 import common_pb2

CONNECT_S = 5.0
ANSWER_S = 30.0
_LATER = (408, 425, 429, 502, 503, 504)

# Servers are on this machine, or where the control plane put them: a proxy in the environment is not for them.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=256)


class Relayed(ApiError):
    """A server's own refusal, as it came; of an operation in several parts, with the number of the one it is of."""

    part = 0

    def __init__(self, error: common_pb2.Error) -> None:
        super().__init__(
            error.message,
            field=error.field,
            hint=error.hint,
            retry_after_s=error.retry_after_s if error.HasField("retry_after_s") else None,
        )
        self.status = error.status
        self.error_class = error.error_class


class NotNow(Unavailable):
    """The server is away, or takes nothing just now."""


def make_client(api_key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {api_key}", "Accept": paths.PROTOBUF, "Content-Type": paths.PROTOBUF}
    return httpx.AsyncClient(headers=headers, limits=_LIMITS, trust_env=False)


async def call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    answer_s: float = ANSWER_S,
) -> bytes:
    """The body of the answer.

    Raises:
        NotNow: there is none, or it says that another time would be better.
        Relayed: it is a refusal.
    """
    timeout = httpx.Timeout(CONNECT_S, read=answer_s, write=ANSWER_S, pool=None)
    try:
        response = await client.request(method, url, content=body, headers=headers, timeout=timeout)
    except httpx.TransportError as error:
        raise NotNow(f"the server does not answer: {error or type(error).__name__}", retry_after_s=1.0) from error
    if response.is_success:
        return response.content
    told = _error_of(response)
    if told.status in _LATER:
        raise NotNow(told.message, hint=told.hint, retry_after_s=told.retry_after_s or 1.0)
    raise Relayed(told)


def _error_of(response: httpx.Response) -> common_pb2.Error:
    try:
        error = common_pb2.Error.FromString(response.content)
    except DecodeError:
        error = common_pb2.Error()
    if not error.message:
        error.message = f"the server answered {response.status_code}"
    error.status = response.status_code
    return error
