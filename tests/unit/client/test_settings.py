"""Where address and key come from, and that the key goes nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import farstep
from farstep._settings import find_key, load_settings
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_server import KEY


def write_local(tmp_path: Path, **content: object) -> None:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "local.json").write_text(json.dumps(content))


def load(**given: str) -> tuple[str, str | None]:
    names = ("api_key", "base_url", "reuse_from_session_id")
    settings = load_settings(**{name: given.get(name) for name in names})
    return settings.base_url, settings.key.secret


def test_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load() == ("http://127.0.0.1:8787", None)
    write_local(tmp_path, base_url="http://127.0.0.1:1234", api_key="fsk-local", pid=1)
    assert load() == ("http://127.0.0.1:1234", "fsk-local")
    assert load(base_url="http://127.0.0.1:1234/") == ("http://127.0.0.1:1234", "fsk-local")
    assert load(base_url="http://other:1") == ("http://other:1", None)
    monkeypatch.setenv("FARSTEP_BASE_URL", "http://env:1")
    monkeypatch.setenv("FARSTEP_API_KEY", "fsk-env")
    assert load() == ("http://env:1", "fsk-env")
    assert load(base_url="http://arg:1", api_key="fsk-arg") == ("http://arg:1", "fsk-arg")


def test_a_service_client_finds_what_up_started(control: ControlPlane, tmp_path: Path) -> None:
    write_local(tmp_path, base_url=control.url, api_key=KEY)
    with farstep.ServiceClient() as client:
        assert client.session_id == "session-1"


@pytest.mark.parametrize("url", ["ftp://host", "host:80", "http://", "http://user:secret@host"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(farstep.InvalidInputError, match="base_url"):
        farstep.ServiceClient(base_url=url)
    with pytest.raises(farstep.InvalidInputError, match="trainer_url"):
        farstep.ServiceClient.local(trainer_url=url, sampler_url="http://host")


def test_a_broken_local_json_says_so(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "local.json").write_text("{")
    with pytest.raises(farstep.InvalidInputError, match=r"local\.json is not JSON"):
        load()


@pytest.mark.parametrize("key", ["fsk-a\n", "fsk a", "fsk-ä"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(farstep.InvalidInputError) as caught:
        find_key(key, "http://host")
    assert key.strip() not in str(caught.value)
    assert caught.value.field == "api_key"


def test_no_repr_holds_a_key() -> None:
    key = find_key("fsk-secret", "http://host")
    assert "secret" not in f"{key!r} {key}"
    settings = load_settings(api_key="fsk-secret", base_url=None, reuse_from_session_id=None)
    assert "fsk-secret" not in repr(settings)
