"""A process's log by way of its control plane: what is there, and what comes.

Lives on the background loop. It is plain text over HTTP, of any length, and so no message of the transport's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import httpx

from farstep._settings import ApiKey
from farstep._transport import LOOPBACK, ssl_context
from farstep.errors import FarstepError, ServerError, TransportError, error_from_refusal
from farstep_proto import paths
from farstep_proto.v1 import common_pb2

_CONNECT_S = 10.0
_ANSWER_S = 60.0


async def log_text(
    url: str, key: ApiKey, name: str, *, tail: int | None = None, follow: bool = False
) -> AsyncGenerator[str, None]:
    """Its text in pieces of any size; with `follow` it goes on until the process or the server ends.

    Raises:
        NotFoundError: there is no such process.
        TransportError: the server does not answer, or the answer broke off.
    """
    headers = {"Accept": f"text/plain, {paths.PROTOBUF};q=0.5"}
    if key.secret:
        headers["Authorization"] = f"Bearer {key.secret}"
    params = {"tail": "" if tail is None else str(tail), "follow": "1" if follow else ""}
    params = {name: value for name, value in params.items() if value}
    # Nobody knows when a process will write again.
    timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, read=None if follow else _ANSWER_S)
    trust_env = urlsplit(url).hostname not in LOOPBACK  # no proxy to this very machine
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, verify=ssl_context(), trust_env=trust_env) as client,
            client.stream(
                "GET", url + paths.of(paths.PROCESS_LOG, name=name), params=params, headers=headers
            ) as response,
        ):
            if not response.is_success:
                await response.aread()
                raise _refusal(response, url)
            async for text in response.aiter_text():
                yield text
        return
    except httpx.TransportError as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    # Raised out here, because httpx's error holds the request and with it the key.
    raise TransportError(f"{url} does not answer ({reason})")


def _refusal(response: httpx.Response, url: str) -> FarstepError:
    if paths.PROTOBUF not in response.headers.get("content-type", ""):
        return ServerError(f"{url} answered with HTTP {response.status_code}", hint="is it a Farstep control plane?")
    message = common_pb2.Error.FromString(response.content)
    message.status = response.status_code
    return error_from_refusal(message)
