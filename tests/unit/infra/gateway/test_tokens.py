"""Tokens: whose they are, until when, and that nobody else makes them."""

import time

import jwt
import pytest

from farstep_infra.gateway.tokens import TTL_S, Identity, Tokens
from farstep_proto.errors import Forbidden, Unauthenticated

ADA = Identity("key-1", "lab", "ada@example.org")


def test_a_token_names_its_key_and_its_end():
    key_id, ends_at = Tokens("secret").read(Tokens("secret").mint(ADA))
    assert key_id == "key-1"
    assert 0 < ends_at - time.time() <= TTL_S
    until = time.time() + 60
    assert Tokens("secret").read(Tokens("secret").mint(ADA, until=until))[1] == pytest.approx(until)


def test_what_was_not_made_here_is_refused():
    mine = Tokens("secret")
    for other in (Tokens("other").mint(ADA), mine.for_trace("session"), "eyJ", "", mine.mint(ADA)[:-4]):
        with pytest.raises(Unauthenticated, match="not one of this installation"):
            mine.read(other)
    with pytest.raises(Unauthenticated, match="expired"):
        mine.read(Tokens("secret", ttl_s=-1).mint(ADA))


def test_a_token_that_lacks_a_claim_is_refused():
    tokens = Tokens("secret")
    claims = jwt.decode(tokens.mint(ADA), options={"verify_signature": False})
    for name in claims.keys() - {"email"}:
        less = {key: value for key, value in claims.items() if key != name}
        with pytest.raises(Unauthenticated):
            tokens.read(jwt.encode(less, tokens._signing_key, algorithm="HS256"))
    assert tokens.read(jwt.encode(claims, tokens._signing_key, algorithm="HS256"))[0] == "key-1"


def test_a_timelines_token_is_for_one_session():
    tokens = Tokens("secret")
    token = tokens.for_trace("session-1")
    tokens.check_trace(token, "session-1")
    for wrong, session_id in ((token, "session-2"), (tokens.mint(ADA), ADA.urn), ("", "session-1")):
        with pytest.raises(Forbidden):
            tokens.check_trace(wrong, session_id)
