"""Short-lived tokens of the Tinker wire: JWTs, each bound to one of our keys.

A token says whose it is and until when; what its bearer may do is what the key may do at that moment, and is asked anew
with each request. So a token ends with its key, and with the installation's own key, from which the secret comes.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import jwt

from farstep_proto.errors import Forbidden, Unauthenticated

TTL_S = 900
ISSUER = "passport-farstep"  # by this prefix the SDK knows a token that says who somebody is
TRACE_TTL_S = 3600
_AUDIENCE = "farstep"
_TRACE_AUDIENCE = "farstep-trace"
_ALGORITHM = "HS256"
_REQUIRED = ("iss", "aud", "sub", "iat", "exp", "key_id", "org_id")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token speaks of.

    Attributes:
        key_id: empty for the installation's own key.
        organization: the key's project; of an operator's, a name that says so.
        email: the key's name where that is an address.
    """

    key_id: str
    organization: str
    email: str = ""

    @property
    def urn(self) -> str:
        return f"farstep:key:{self.key_id or 'installation'}"


def looks_like_token(credential: str) -> bool:
    """By what the SDK knows them, too."""
    return credential.startswith("eyJ")


class Tokens:
    """Args: `secret`: what only this installation knows."""

    def __init__(self, secret: str, *, ttl_s: float = TTL_S) -> None:
        self._signing_key = hashlib.sha256(b"farstep tinker token\0" + secret.encode()).digest()
        self._ttl_s = ttl_s

    def mint(self, identity: Identity, *, until: float = float("inf")) -> str:
        """A token that ends no later than `until` (seconds since the epoch)."""
        now = time.time()
        claims: dict[str, str | float] = {
            "iss": ISSUER,
            "aud": _AUDIENCE,
            "sub": identity.urn,
            "org_id": identity.organization,
            "key_id": identity.key_id,
            "iat": now,
            "exp": min(now + self._ttl_s, until),
        }
        if identity.email:
            claims["email"] = identity.email
        return jwt.encode(claims, self._signing_key, algorithm=_ALGORITHM)

    def read(self, token: str) -> tuple[str, float]:
        """The id of the key that a token is bound to, and when the token ends.

        Raises:
            Unauthenticated: it was not made here, or has expired.
        """
        try:
            claims = jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=ISSUER,
                options={"require": list(_REQUIRED), "verify_iat": False},  # our own clock, which may be set back
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("this token has expired", hint="get another one with the API key") from error
        except jwt.InvalidTokenError as error:
            raise Unauthenticated("this token is not one of this installation") from error
        return str(claims["key_id"]), float(claims["exp"])

    def for_trace(self, session_id: str) -> str:
        """A token that lets whoever has it look at a session's timeline, and do nothing else."""
        claims = {"aud": _TRACE_AUDIENCE, "sub": session_id, "exp": time.time() + TRACE_TTL_S}
        return jwt.encode(claims, self._signing_key, algorithm=_ALGORITHM)

    def check_trace(self, token: str, session_id: str) -> None:
        """Raises:
        Forbidden: it is no such token, or has expired.
        """
        try:
            jwt.decode(
                token,
                self._signing_key,
                algorithms=[_ALGORITHM],
                audience=_TRACE_AUDIENCE,
                subject=session_id,
                options={"require": ["aud", "sub", "exp"]},
            )
        except jwt.InvalidTokenError as error:
            raise Forbidden("this URL was not made here, or has expired", hint="export the trace again") from error
