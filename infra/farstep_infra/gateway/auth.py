"""Who is asking over the Tinker wire: `X-API-Key`, with a key of ours or with a token that was given for one.

The SDK insists on keys that begin with `tml-`, so ours are taken with that prefix or without. Whoever has a key is the
same caller as with `Authorization: Bearer`, here and on every other route. Tokens are for this wire alone.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.keys import IssuedKeys
from farstep_infra.gateway.bodies import Body, answer, media
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.tokens import Identity, Tokens, looks_like_token
from farstep_proto.errors import Forbidden, Unauthenticated
from farstep_serving.descriptions import describe
from farstep_serving.keys import OPERATOR, Caller, authorization_of, caller_of

HEADER = "X-API-Key"
KEY_PREFIX = "tml-"
OPERATORS = "operators"  # the organization of keys that are no project's
_SCHEME = "Tinker"  # between `credential_of` and `TinkerAuth`, never on a wire


def credential_of(request: Request) -> str:
    """For `RequireKey`: what is in this wire's header on this wire's routes, as an Authorization header of its own."""
    given = request.headers.get(HEADER, "").strip() if request.url.path.startswith(PREFIX) else ""
    return f"{_SCHEME} {given}" if given else authorization_of(request)


class TinkerAuth:
    """`Keys` of the control plane, with what the Tinker wire adds.

    Args:
        asks_for_tokens: whether clients are told to exchange their key for a token before all else.
    """

    def __init__(self, keys: IssuedKeys, *, asks_for_tokens: bool = False) -> None:
        self.keys = keys
        self.tokens = Tokens(keys.secret())
        self.asks_for_tokens = asks_for_tokens

    async def identify(self, authorization: str) -> Caller:
        """Raises:
        Unauthenticated: it carries no key or token, or one that does not hold, or not any more.
        """
        scheme, _, given = authorization.partition(" ")
        if scheme != _SCHEME:
            return await self.keys.identify(authorization)
        if looks_like_token(given):
            key_id, _ = self.tokens.read(given)
            return await self.keys.holder(key_id) if key_id else OPERATOR
        try:
            return await self.keys.identify(f"Bearer {given.removeprefix(KEY_PREFIX)}")
        except Unauthenticated as refusal:
            try:
                return await self.keys.identify(f"Bearer {given}")  # an installation's own key may begin like that
            except Unauthenticated:
                raise refusal from None

    async def name_of(self, caller: Caller) -> str:
        """What the caller's key is called, for people."""
        if not caller.key_id:
            return "the installation's own key"
        return (await self.keys.get(caller.key_id, caller=OPERATOR)).name or caller.key_id

    async def identity_of(self, caller: Caller) -> Identity:
        name = await self.name_of(caller)
        return Identity(caller.key_id, caller.project or OPERATORS, name if "@" in name else "")


def auth_of(request: Request) -> TinkerAuth:
    auth = request.app.state.tinker_auth
    assert isinstance(auth, TinkerAuth)
    return auth


class Token(Body):
    jwt: str


class OrgDetails(Body):
    name: str


class UserDetails(Body):
    email: str


class KeyDetails(Body):
    org_details: OrgDetails
    user_details: UserDetails


class OwnKey(Body):
    """`key_id` is a number on this wire: that in our id, 0 for the installation's own key."""

    key_id: int
    name: str
    note: str
    details: KeyDetails


@describe("Exchange an API key for a token that lives shortly", gives=media(Token), error=media(ErrorBody))
async def _token(request: Request) -> Response:
    auth = auth_of(request)
    given = _given(request)
    # A token begets none that outlives it: else who finds one would have it for ever.
    until = auth.tokens.read(given)[1] if looks_like_token(given) else float("inf")
    return answer(Token(jwt=auth.tokens.mint(await auth.identity_of(caller_of(request)), until=until)))


@describe("Look at the key that asks", gives=media(OwnKey), error=media(ErrorBody))
async def _own_key(request: Request) -> Response:
    auth, caller = auth_of(request), caller_of(request)
    identity, name = await auth.identity_of(caller), await auth.name_of(caller)
    details = KeyDetails(
        org_details=OrgDetails(name=identity.organization), user_details=UserDetails(email=identity.email or name)
    )
    note = "an operator's key" if caller.is_operator else f"a key of project {caller.project}"
    return answer(OwnKey(key_id=_number_of(caller.key_id), name=name, note=note, details=details))


@describe("Revoke the key that asks", gives=media(Body), error=media(ErrorBody), errors=[Forbidden])
async def _revoke_own_key(request: Request) -> Response:
    caller = caller_of(request)
    if looks_like_token(_given(request)):
        raise Forbidden("a token revokes no key", hint="ask with the key itself")
    if not caller.key_id:
        raise Forbidden(
            "this is the installation's own key, which is in no table",
            hint="change <home>/api_key or FARSTEP_API_KEY and start anew",
        )
    await auth_of(request).keys.revoke(caller.key_id, caller=OPERATOR)  # it has it
    return answer(Body())


def _given(request: Request) -> str:
    return request.headers.get(HEADER, "").strip()


def _number_of(key_id: str) -> int:
    return int(key_id.rpartition("-")[2], 16) if key_id else 0


ROUTES = [
    Route(f"{PREFIX}auth/token", _token, methods=["POST"]),
    Route(f"{PREFIX}auth/apikey/me", _own_key, methods=["GET"]),
    Route(f"{PREFIX}auth/apikey/me", _revoke_own_key, methods=["DELETE"]),
]
