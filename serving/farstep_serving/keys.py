"""Who may speak to a server: bearer keys, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from starlette.requests import Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from farstep_proto.errors import Unauthenticated
from farstep_serving.messages import ErrorResponse, respond_error

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def make_key() -> str:
    return "fsk-" + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys that a server accepts; without any it is open, which only a loopback server may be."""

    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, *keys: str | None) -> KeyRing:
        return cls(tuple(_digest(key) for key in keys if key))

    def secret(self) -> str:
        """What only who holds the keys can know; of an open server, what only this process knows."""
        return b"".join(self.digests).hex() or secrets.token_hex(32)

    def check(self, authorization: str) -> None:
        """Takes an Authorization header.

        Raises:
            Unauthenticated: it carries no accepted key.
        """
        if not self.digests:
            return
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        matches = [hmac.compare_digest(given, known) for known in self.digests]  # all, so that timing tells nothing
        if not any(matches):
            raise Unauthenticated("no key, or a wrong one" if not key else "wrong key")

    def check_host(self, host: str) -> None:
        """Refuses to start an open server on an address that others can reach."""
        if not self.digests and host not in LOOPBACK_HOSTS:
            raise SystemExit(f"set FARSTEP_API_KEY: a server without a key listens on loopback only, not on {host}")


class RequireKey:
    """ASGI middleware: everything but `open_paths` (templates as of a route) needs a key."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        open_paths: frozenset[str] = frozenset(),
        error_response: ErrorResponse = respond_error,
    ) -> None:
        self._app = app
        self._keys = keys
        self._error_response = error_response
        self._open_paths = [compile_path(path)[0] for path in open_paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not any(path.match(scope["path"]) for path in self._open_paths):
            request = Request(scope)
            try:
                self._keys.check(request.headers.get("authorization", ""))
            except Unauthenticated as error:
                response = await self._error_response(request, error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
