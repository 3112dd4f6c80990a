"""The sampler behind the proxy: a request is repeated where the sampler did not answer, so often and no more.

Waits for an answer as long as it takes. What has begun to come is not repeated.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from farstep.rollout.failures import RETRYABLE_STATUS
from farstep.sampling import OpenAiEndpoint

_CONNECT_S, _RESTART_S = 10.0, 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 15.0

Retried = Callable[[str], None]


class Unanswered(Exception):
    """No answer came; `status` and `body` are what to say instead."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Upstream:
    """Args:
    max_retries: how often one request is repeated.
    restart_s: so long a sampler that takes no connection is waited for, as it is when it is started anew; these tries
        do not count.
    """

    def __init__(
        self, *, max_retries: int, restart_s: float = _RESTART_S, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._max_retries = max_retries
        self._restart_s = restart_s
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_S), limits=limits, transport=transport
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def chat(
        self, body: dict[str, Any], find_endpoint: Callable[[], OpenAiEndpoint], retried: Retried
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a chat, whose body is not read yet.

        Args:
            find_endpoint: where the sampler is now, and which policy is meant; asked anew each time.

        Raises:
            Unanswered: the sampler cannot be reached.
        """
        began_at = time.monotonic()
        num_tries = num_pauses = 0
        while True:
            endpoint = find_endpoint()
            request = self._http.build_request(
                "POST",
                f"{endpoint.base_url}/chat/completions",
                headers={"Authorization": f"Bearer {endpoint.api_key}", **endpoint.headers},
                json={**body, "model": endpoint.model},
            )
            pause_s = min(_FIRST_PAUSE_S * 2**num_pauses, _LONGEST_PAUSE_S)
            num_pauses += 1
            try:
                response = await self._http.send(request, stream=True)
            except httpx.TransportError as error:
                reason = type(error).__name__
                is_away = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if not (is_away and time.monotonic() - began_at < self._restart_s):
                    num_tries += 1
                if num_tries > self._max_retries:
                    raise Unanswered(503, _unavailable(f"the sampler does not answer: {reason}: {error}")) from error
            else:
                num_tries += 1
                if response.status_code not in RETRYABLE_STATUS or num_tries > self._max_retries:
                    try:
                        yield response
                    finally:
                        await response.aclose()
                    return
                reason = f"status_{response.status_code}"
                pause_s = max(pause_s, _retry_after_s(response))
                await response.aclose()
            retried(reason)
            await asyncio.sleep(pause_s)


async def read_json(response: httpx.Response) -> dict[str, Any]:
    """An answer's body. Raises Unanswered where it is cut off, or none of the sampler's."""
    try:
        found = json.loads(await response.aread())
    except httpx.TransportError as error:
        raise Unanswered(503, _unavailable(f"the sampler's answer was cut off: {error}")) from error
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Unanswered(
            502, _unavailable(f"what answers at {response.url.host} with {response.status_code} is no sampler")
        )
    return found


def _unavailable(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": "unavailable"}}


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("Retry-After", 0)), _LONGEST_PAUSE_S)
    except ValueError:
        return 0.0
