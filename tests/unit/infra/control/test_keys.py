"""Keys over HTTP: made, told once, asked after, revoked."""

import base64
import hashlib
from contextlib import contextmanager

import pytest


@contextmanager
def as_key(up, secret):
    own, up.key = up.key, secret
    try:
        yield
    finally:
        up.key = own


def asked_after(secret):
    return {"sha256": base64.b64encode(hashlib.sha256(secret.encode()).digest()).decode()}


def test_a_key_is_told_once_and_works_until_it_is_revoked(up):
    created = up.call("POST", "/v1/keys", {"name": "laptop", "project": "alpha"})
    secret, key = created["secret"], created["key"]
    assert len(secret) > 40
    assert secret.startswith(key["hint"])
    assert len(key["hint"]) == 8
    assert key["project"] == "alpha"
    found = up.call("GET", f"/v1/keys/{key['key_id']}")
    assert found == key
    assert secret not in str(up.call("GET", "/v1/keys"))
    with as_key(up, secret):
        session_id = up.session()
        assert up.call("GET", f"/v1/sessions/{session_id}")["project"] == "alpha"
    owner = up.call("POST", "/v1/keys:check", asked_after(secret))
    assert owner == {"key_id": key["key_id"], "project": "alpha"}
    assert up.call("GET", f"/v1/keys/{key['key_id']}")["last_used_at"] >= key["created_at"]
    for _ in range(2):
        up.call("DELETE", f"/v1/keys/{key['key_id']}")
    with as_key(up, secret):
        error = up.call("GET", "/v1/sessions", status=401)
        assert "revoked" in error["message"]
    assert up.call("POST", "/v1/keys:check", asked_after(secret), status=404)["field"] == "sha256"
    assert [key["key_id"] for key in up.call("GET", "/v1/keys?state=revoked")["keys"]] == [key["key_id"]]


def test_a_key_ends_with_its_time(up):
    created = up.call("POST", "/v1/keys", {"project": "alpha", "ttl_seconds": 1})
    up.wait_until(lambda: "keys" in up.call("GET", "/v1/keys?state=expired"))
    with as_key(up, created["secret"]):
        assert "expired" in up.call("GET", "/v1/sessions", status=401)["message"]
    up.call("POST", "/v1/keys:check", asked_after(created["secret"]), status=404)


def test_an_operators_key_does_what_only_operators_do(up):
    created = up.call("POST", "/v1/keys", {"name": "ops", "operator": True})
    with as_key(up, created["secret"]):
        assert up.call("POST", "/v1/keys:check", asked_after(created["secret"]))["operator"] is True
        assert up.call("GET", "/v1/status")["processes"]
        up.call("POST", "/v1/keys", {"project": "alpha"})
    assert up.call("POST", "/v1/keys:check", asked_after(up.key)) == {"operator": True}


def test_a_projects_keys_see_and_revoke_each_other_and_make_none(up):
    first = up.call("POST", "/v1/keys", {"project": "beta", "name": "first"})
    second = up.call("POST", "/v1/keys", {"project": "beta", "name": "second"})
    other = up.call("POST", "/v1/keys", {"project": "alpha"})
    with as_key(up, first["secret"]):
        assert [key["name"] for key in up.call("GET", "/v1/keys")["keys"]] == ["first", "second"]
        for method, path, body in (
            ("POST", "/v1/keys", {"project": "beta"}),
            ("POST", "/v1/keys:check", asked_after(second["secret"])),
            ("POST", "/v1/projects", {"project": "gamma"}),
            ("GET", "/v1/status", None),
        ):
            assert up.call(method, path, body, status=403)["error_class"] == "PermissionDeniedError"
        for method in ("GET", "DELETE"):
            assert up.call(method, f"/v1/keys/{other['key']['key_id']}", status=404)["field"] == "key_id"
        up.call("DELETE", f"/v1/keys/{second['key']['key_id']}")
        up.call("DELETE", f"/v1/keys/{first['key']['key_id']}")
        up.call("GET", "/v1/keys", status=401)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"project": "../up"}, "project"),
        ({"project": "a\0b"}, "project"),
        ({"project": "x" * 300}, "project"),
        ({"project": "alpha", "operator": True}, "project"),
        ({"project": "alpha", "ttl_seconds": 0}, "ttl_seconds"),
        ({"project": "alpha", "ttl_seconds": -5}, "ttl_seconds"),
        ({"project": "alpha", "ttl_seconds": 1 << 60}, "ttl_seconds"),
        ({"project": "alpha", "name": "a\nb"}, "name"),
    ],
)
def test_nonsense_is_refused_by_field(up, wrong, field):
    assert up.call("POST", "/v1/keys", wrong, status=400)["field"] == field
    assert up.call("POST", "/v1/keys:check", {"sha256": "c2hvcnQ="}, status=400)["field"] == "sha256"
