"""Who may speak to a server, and as whom: bearer keys, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from farstep_proto import paths
from farstep_proto.errors import ApiError, Forbidden, Unauthenticated
from farstep_proto.names import check_name
from farstep_serving.messages import ErrorResponse, respond_error

_CALLER = "farstep.caller"  # in an ASGI scope

Handler = Callable[[Request], Awaitable[Response]]

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def make_key() -> str:
    return "fsk-" + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request carries.

    Attributes:
        key_id: empty for the installation's own key.
        project: the one that it may see; empty for an operator, who may see all.
        relays: an operator who asks for that project: it sees what the project does, and outcomes come back to it.
    """

    key_id: str = ""
    project: str = ""
    is_operator: bool = False
    relays: bool = False

    def may_see(self, project: str) -> bool:
        """Whether what belongs to a project is there for this caller; what belongs to none is for operators alone."""
        return self.is_operator or (bool(project) and self.project == project)

    def named(self, name: str) -> str:
        """A name that a client has chosen, as no caller of another project can say it: no name has a `/`."""
        return name if self.is_operator or self.relays else f"{self.project}/{name}"

    def acting_for(self, project: str) -> Caller:
        """The caller as it asks with the header `paths.ON_BEHALF_OF`; the empty one changes nothing.

        Raises:
            Forbidden: only operators ask for others.
        """
        if not project or project == self.project:
            return self
        if not self.is_operator:
            raise Forbidden("only an operator's key asks for another project", field=paths.ON_BEHALF_OF)
        return Caller(self.key_id, check_name(project, field=paths.ON_BEHALF_OF), relays=True)


OPERATOR = Caller(is_operator=True)


def caller_of(request: Request) -> Caller:
    """Who `RequireKey` found to be asking."""
    caller = request.scope[_CALLER]
    assert isinstance(caller, Caller)
    return caller


def require_operator(request: Request) -> None:
    """Raises Forbidden for whoever has a project's key."""
    if not caller_of(request).is_operator:
        raise Forbidden("this is for operators", hint="use an operator's key")


def for_operators(handler: Handler) -> Handler:
    """A handler that answers nobody else; the others get Forbidden."""

    @wraps(handler)
    async def guarded(request: Request) -> Response:
        require_operator(request)
        return await handler(request)

    return guarded


class Keys(Protocol):
    """What a server knows about keys."""

    async def identify(self, authorization: str) -> Caller:
        """Takes an Authorization header.

        Raises:
            Unauthenticated: it carries no accepted key.
            Unavailable: nobody can tell just now.
        """
        ...


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
        given = digest_of(authorization)
        matches = [hmac.compare_digest(given, known) for known in self.digests]  # all, so that timing tells nothing
        if not any(matches):
            raise Unauthenticated("wrong key" if given else "no key, or a wrong one")

    async def identify(self, authorization: str) -> Caller:
        """Whoever has a key of the ring is an operator.

        Raises:
            Unauthenticated: it carries no accepted key.
        """
        self.check(authorization)
        return OPERATOR

    def check_host(self, host: str) -> None:
        """Refuses to start an open server on an address that others can reach."""
        if not self.digests and host not in LOOPBACK_HOSTS:
            raise SystemExit(f"set FARSTEP_API_KEY: a server without a key listens on loopback only, not on {host}")


def authorization_of(request: Request) -> str:
    """The Authorization header; empty where there is none."""
    return request.headers.get("authorization", "")


class RequireKey:
    """ASGI middleware: everything but `open_paths` (templates as of a route) needs a key.

    Args:
        credential_of: what `keys` is shown of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        open_paths: frozenset[str] = frozenset(),
        error_response: ErrorResponse = respond_error,
        credential_of: Callable[[Request], str] = authorization_of,
    ) -> None:
        self._app = app
        self._credential_of = credential_of
        self._keys = keys
        self._error_response = error_response
        self._open_paths = [compile_path(path)[0] for path in open_paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not any(path.match(scope["path"]) for path in self._open_paths):
            request = Request(scope)
            try:
                caller = await self._keys.identify(self._credential_of(request))
                scope[_CALLER] = caller.acting_for(request.headers.get(paths.ON_BEHALF_OF, ""))
            except ApiError as error:
                response = await self._error_response(request, error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def digest_of(authorization: str) -> bytes:
    """The SHA-256 of the key in an Authorization header; empty where there is none."""
    scheme, _, key = authorization.partition(" ")
    return _digest(key.strip()) if scheme.lower() == "bearer" and key.strip() else b""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
