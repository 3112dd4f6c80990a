"""Keys of the Tinker wire: `X-API-Key`, one of our own keys, with the prefix that the SDK insists on or without.

Whoever has it is the same caller as with `Authorization: Bearer`.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from farstep_infra.gateway.failures import PREFIX

HEADER = "X-API-Key"
_SDK_PREFIX = "tml-"

ROUTES: list[Route] = []


class TinkerKeys:
    """ASGI middleware in front of the one that asks for keys: shows it this wire's header as the one that it knows."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            headers = MutableHeaders(scope=scope)
            if key := headers.get(HEADER):
                headers["Authorization"] = f"Bearer {key.removeprefix(_SDK_PREFIX)}"
        await self._app(scope, receive, send)
