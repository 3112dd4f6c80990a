"""Keys and tokens of the Tinker wire: the real SDK and command, a control plane whose trainers are fakes."""

import json
import tempfile
import time
from pathlib import Path

import httpx
import jwt
import pytest
import tinker

from farstep_infra.gateway.tokens import Identity, Tokens
from farstep_serving.keys import KeyRing
from tests.contract.tinker.commands import Command
from tests.unit.infra.conftest import start_up

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up():
    """It asks clients to exchange their key for a token."""
    with tempfile.TemporaryDirectory() as home:
        running = start_up(Path(home), "--model=fake/one", "--tinker-jwt")
        yield running
        running.stop()


@pytest.fixture
def ask(up):
    """One request of the Tinker wire, with whatever is in its header."""

    def ask(method, path, credential=None, body=None, **headers):
        headers |= {"X-API-Key": credential} if credential is not None else {}
        with httpx.Client(base_url=f"{up.url}/api/v1/", trust_env=False, timeout=30) as client:
            return client.request(method, path, json=body, headers=headers)

    return ask


@pytest.fixture
def new_key(up):
    def new_key(**fields):
        made = up.call("POST", "/v1/keys", fields)
        return made["secret"], made["key"]["key_id"]

    return new_key


def token_for(ask, key):
    answer = ask("POST", "auth/token", f"tml-{key}", {})
    assert answer.status_code == 200, answer.text
    return answer.json()["jwt"]


def claims_of(token):
    return jwt.decode(token, options={"verify_signature": False})


def test_a_key_is_taken_with_the_prefix_and_without_and_as_everywhere_else(up, ask, new_key):
    secret, _ = new_key(project="lab")
    for credential in (f"tml-{up.key}", up.key, f"tml-{secret}", secret):
        assert ask("GET", "get_server_capabilities", credential).status_code == 200
    assert ask("GET", "get_server_capabilities", Authorization=f"Bearer {secret}").status_code == 200
    elsewhere = httpx.get(up.url + "/v1/sessions", headers={"X-API-Key": up.key}, trust_env=False)
    assert elsewhere.status_code == 401, "this header is the Tinker wire's alone"


@pytest.mark.parametrize("credential", [None, "", "tml-", "tml-fsk-guessed", "eyJhbGciOiJub25lIn0.e30.", "Tinker x"])
def test_without_a_key_nothing_is_told(ask, credential):
    for method, path in (("GET", "training_runs"), ("POST", "auth/token"), ("POST", "client/config"), ("GET", "x")):
        answer = ask(method, path, credential, {} if method == "POST" else None)
        assert answer.status_code == 401
        assert answer.json()["detail"]
        assert ('error="invalid_token"' in answer.headers["WWW-Authenticate"]) == bool(credential)
    assert ask("GET", "healthz").json() == {"status": "ok"}


def test_a_project_is_seen_by_its_own_keys_alone(up, ask, new_key):
    (lab, _), (elsewhere, _) = new_key(project="lab"), new_key(project="elsewhere")
    session_id = ask("POST", "create_session", f"tml-{lab}", {}).json()["session_id"]
    assert ask("GET", f"sessions/{session_id}", f"tml-{lab}").status_code == 200
    assert ask("GET", f"sessions/{session_id}", token_for(ask, lab)).status_code == 200
    assert ask("GET", f"sessions/{session_id}", f"tml-{elsewhere}").status_code == 404
    assert ask("GET", f"sessions/{session_id}", token_for(ask, elsewhere)).status_code == 404
    for_another = {"X-Farstep-Project": "elsewhere"}
    assert ask("GET", f"sessions/{session_id}", f"tml-{up.key}", **for_another).status_code == 404
    assert ask("GET", f"sessions/{session_id}", f"tml-{lab}", **for_another).status_code == 403


def test_a_token_says_who_somebody_is_and_until_when(up, ask, new_key):
    secret, key_id = new_key(project="lab", name="ada@example.org")
    claims = claims_of(token_for(ask, secret))
    assert (claims["sub"], claims["org_id"], claims["email"]) == (f"farstep:key:{key_id}", "lab", "ada@example.org")
    assert 0 < claims["exp"] - claims["iat"] <= 3600
    assert abs(claims["iat"] - time.time()) < 60
    own = claims_of(token_for(ask, up.key))
    assert (own["sub"], own["org_id"], "email" in own) == ("farstep:key:installation", "operators", False)


def test_a_token_ends_with_its_key(up, ask, new_key):
    secret, key_id = new_key(project="lab")
    token = token_for(ask, secret)
    assert ask("GET", "training_runs", token).status_code == 200
    up.call("DELETE", f"/v1/keys/{key_id}")
    for credential in (token, f"tml-{secret}"):
        refused = ask("GET", "training_runs", credential)
        assert (refused.status_code, "revoked" in refused.json()["detail"]) == (401, True)
    assert ask("POST", "auth/token", token, {}).status_code == 401


def test_tokens_are_made_here_and_not_altered(up, ask, new_key):
    secret, key_id = new_key(project="lab")
    token = token_for(ask, secret)
    head, body, signature = token.split(".")
    other = claims_of(token) | {"key_id": "", "org_id": "operators"}
    forged = [
        jwt.encode(other, "x" * 32, algorithm="HS256"),
        jwt.encode(other, None, algorithm="none"),
        f"{head}.{jwt.encode(other, 'x' * 32, algorithm='HS256').split('.')[1]}.{signature}",
        f"{head}.{body}.",
        f"{head}.{body}",
        Tokens("another installation").mint(Identity(key_id, "lab")),
        Tokens(_secret_of(up)).for_trace("session-1"),
    ]
    for each in forged:
        answer = ask("GET", "training_runs", each)
        assert (answer.status_code, 'error="invalid_token"' in answer.headers["WWW-Authenticate"]) == (401, True), each
    assert ask("GET", "training_runs", token).status_code == 200


def test_an_expired_token_is_refused_and_begets_no_other(up, ask, new_key):
    _, key_id = new_key(project="lab")
    tokens, identity = Tokens(_secret_of(up)), Identity(key_id, "lab")
    live = tokens.mint(identity, until=time.time() + 100)
    begot = ask("POST", "auth/token", live, {}).json()["jwt"]
    assert claims_of(begot)["exp"] == pytest.approx(claims_of(live)["exp"])
    over = tokens.mint(identity, until=time.time() - 1)
    refused = ask("POST", "auth/token", over, {})
    assert (refused.status_code, "expired" in refused.json()["detail"]) == (401, True)


def test_a_key_looks_at_itself_and_ends_itself(up, ask, new_key):
    secret, key_id = new_key(project="lab", name="laptop")
    found = ask("GET", "auth/apikey/me", f"tml-{secret}").json()
    assert (found["key_id"], found["name"]) == (int(key_id.removeprefix("key-"), 16), "laptop")
    assert found["details"]["org_details"]["name"] == "lab"
    assert secret not in json.dumps(found)
    assert ask("DELETE", "auth/apikey/me", token_for(ask, secret)).status_code == 403, "a token is not the key"
    assert ask("DELETE", "auth/apikey/me", f"tml-{secret}").status_code == 200
    assert ask("GET", "auth/apikey/me", f"tml-{secret}").status_code == 401
    for credential in (f"tml-{up.key}", token_for(ask, up.key)):
        assert ask("DELETE", "auth/apikey/me", credential).status_code == 403
    assert ask("GET", "auth/apikey/me", f"tml-{up.key}").json()["key_id"] == 0


def test_the_sdk_exchanges_its_key_and_knows_who_it_is(up, new_key):
    secret, key_id = new_key(project="lab", name="ada@example.org")
    with tinker.ServiceClient(base_url=up.url, api_key=f"tml-{secret}") as service:
        assert service.holder.get_session_id().startswith("session-")
        me = tinker.RestClient(base_url=up.url, api_key=f"tml-{secret}").whoami().result()
        assert (me.user_urn, me.org_urn, me.email) == (
            f"farstep:key:{key_id}",
            "tml:organization:lab",
            "ada@example.org",
        )


def test_the_sdk_replaces_a_token_that_is_refused(up, new_key, monkeypatch):
    """As after a restart with another key of the installation's own: the token is refused before its time."""
    secret, key_id = new_key(project="lab")
    client = tinker.RestClient(base_url=up.url, api_key=f"tml-{secret}")
    assert client.list_training_runs().result().training_runs == []
    provider = client.holder._default_auth
    provider._token = Tokens("another installation").mint(Identity(key_id, "lab"))
    assert client.list_training_runs().result().cursor.total_count == 0
    assert claims_of(provider._token)["key_id"] == key_id


def test_the_sdk_says_that_a_key_is_wrong(up):
    with pytest.raises(tinker.AuthenticationError, match=r"wrong key.*TINKER_API_KEY"):
        tinker.RestClient(base_url=up.url, api_key="tml-fsk-guessed")


def test_the_command_tells_who_is_asking(up, new_key, tmp_path):
    secret, key_id = new_key(project="lab", name="ada@example.org")
    told = Command(up.url, f"tml-{secret}", tmp_path)("-f", "json", "auth", "whoami")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {
        "user_urn": f"farstep:key:{key_id}",
        "org_urn": "tml:organization:lab",
        "email": "ada@example.org",
    }
    status = Command(up.url, f"tml-{secret}", tmp_path)("auth", "status")
    assert (status.returncode, "Tinker accessible: yes" in status.stdout) == (0, True), status.stderr
    status = Command(up.url, "tml-fsk-guessed", tmp_path)("auth", "status")
    assert (status.returncode, "Tinker accessible: no" in status.stdout) == (1, True)
    assert "fsk-guessed" not in status.stdout + status.stderr


def _secret_of(up):
    """What only the installation knows."""
    return KeyRing.of(up.key).secret()
