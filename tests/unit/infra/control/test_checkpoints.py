"""Checkpoints over HTTP: listed from the store, fetched by URLs that cannot be forged or bent."""

import hashlib
import json
import subprocess
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from farstep.cli.main import main
from farstep_infra.store.archive import PAGE_SIZE, URL_TTL_S, Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_proto.errors import Forbidden, InvalidInput, NotFound
from farstep_proto.names import CheckpointPath
from tests.support.s3 import new_bucket, s3_server

PATH = CheckpointPath("run:c", "weights", "step-10")
FILES = {"adapter_model.safetensors": b"weights" * 1000, "adapter_config.json": b"{}"}
META = {
    "base_model": "fake/one",
    "lora": {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj"]},
    "step": 10,
    "policy_version": 3,
    "metadata": {"loss": "0.5"},
}


@pytest.fixture(scope="module")
def stored(up):
    store = CheckpointStore(up.home / "store")
    store.write(PATH, FILES, META)
    return store


def test_a_run_that_the_control_plane_never_saw_is_listed_from_the_store(up, stored):
    (checkpoint,) = up.call("GET", f"/v1/runs/{PATH.run_id}/checkpoints")["checkpoints"]
    assert checkpoint["path"] == str(PATH)
    assert checkpoint["checkpoint_id"] == PATH.checkpoint_id
    assert (checkpoint["target"], checkpoint["step"], checkpoint["policy_version"]) == ("trainer", "10", "3")
    assert checkpoint["lora_adapter_config"] == {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj"]}
    assert checkpoint["metadata"] == {"loss": "0.5"}
    assert int(checkpoint["size_bytes"]) == 7002
    assert checkpoint["sha256s"] == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert "expires_at" not in checkpoint


def test_a_run_without_any_has_an_empty_list_and_an_unknown_one_none(up):
    run = up.run(up.session())
    assert up.call("GET", f"/v1/runs/{run['run_id']}/checkpoints") == {}
    assert up.call("GET", "/v1/runs/run-none/checkpoints", status=404)["field"] == "run_id"


def test_every_file_can_be_fetched_by_its_url_without_a_key(up, stored):
    archive = up.call("GET", f"/v1/checkpoints/{PATH.checkpoint_id}/archive")
    assert archive["checkpoint_id"] == PATH.checkpoint_id
    assert "next_page" not in archive
    fetched = {}
    for file in archive["files"]:
        response = httpx.get(file["url"])
        assert response.status_code == 200
        assert hashlib.sha256(response.content).hexdigest() == file["sha256"]
        assert len(response.content) == int(file["size_bytes"])
        fetched[file["name"]] = response.content
    assert fetched == FILES


@pytest.mark.parametrize(
    "bend",
    [
        lambda url: url.split("?")[0],
        lambda url: url.replace("expires=", "expires=9"),
        lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url: url.replace("adapter_config.json", "adapter_model.safetensors"),
        lambda url: url.replace("step-10", "step-11"),
        lambda url: url.replace("adapter_config.json", "..%2f..%2fcontrol.db"),
        lambda url: url + "%F0%9F%98%80",
    ],
)
def test_a_bent_url_is_refused(up, stored, bend):
    files = up.call("GET", f"/v1/checkpoints/{PATH.checkpoint_id}/archive")["files"]
    (url,) = [file["url"] for file in files if file["name"] == "adapter_config.json"]
    assert httpx.get(bend(url)).status_code in (401, 403, 404)
    assert httpx.get(bend(url)).content != FILES["adapter_model.safetensors"]
    assert httpx.get(url).status_code == 200


def test_what_is_not_there_is_not_found(up, stored):
    up.call("GET", "/v1/checkpoints/run:c/weights/none/archive", status=404)
    up.call("GET", "/v1/checkpoints/run:c/nothing/step-10/archive", status=400)
    up.call("GET", f"/v1/checkpoints/{PATH.checkpoint_id}/archive?page=7", status=400)
    response = httpx.get(f"{up.url}/v1/checkpoints/{PATH.checkpoint_id}/archive")
    assert response.status_code == 401, "the list of URLs needs a key"


def test_one_is_kept_for_a_while_and_removed(up, stored):
    path = CheckpointPath(PATH.run_id, "sampler_weights", "soon-gone")
    stored.write(path, FILES, META)
    where = f"/v1/checkpoints/{path.checkpoint_id}"
    assert 59 < up.call("PUT", f"{where}/ttl", {"ttl_seconds": 60})["expires_at"] - time.time() <= 60
    assert "expires_at" in up.call("GET", where)
    assert "expires_at" not in up.call("PUT", f"{where}/ttl", {})
    for wrong in (0, -5):
        assert up.call("PUT", f"{where}/ttl", {"ttl_seconds": wrong}, status=400)["field"] == "ttl_seconds"
    assert up.call("PUT", f"{where}/ttl", {"ttl_seconds": "soon"}, status=400)["field"] == "ttl_seconds"
    up.call("DELETE", where)
    up.call("DELETE", where, status=404)
    up.call("PUT", f"{where}/ttl", {"ttl_seconds": 60}, status=404)
    assert httpx.delete(up.url + where).status_code == 401


async def test_a_long_list_comes_in_pages_that_do_not_shift(tmp_path):
    now = 1000.0
    store = CheckpointStore(tmp_path, clock=lambda: now)
    checkpoints = Checkpoints(store, secret="key")
    paths = [CheckpointPath("r", "weights", f"c-{i:03}") for i in range(PAGE_SIZE + 20)]
    for i, path in enumerate(paths):
        now = 1000.0 + i // 2  # two at once, told apart by name
        store.write(path, {"f": b""}, {})
    first = await checkpoints.list("r")
    assert [found.path for found in first.checkpoints] == [str(path) for path in paths[:PAGE_SIZE]]
    store.delete(paths[3])
    second = await checkpoints.list("r", page=first.next_page)
    assert [found.path for found in second.checkpoints] == [str(path) for path in paths[PAGE_SIZE:]]
    assert not second.next_page
    for wrong in ("x", "1~", "~", "nan~r/weights/../x"):
        with pytest.raises(InvalidInput) as caught:
            await checkpoints.list("r", page=wrong)
        assert caught.value.field == "page"


async def test_of_a_bucket_the_urls_are_its_own(tmp_path):
    with s3_server() as url:
        store = open_store(f"s3://{new_bucket()}/p")
        store.write(PATH, FILES, META)
        archive = await Checkpoints(store, secret="key").archive(PATH, base_url="http://here/", page="")
        assert all(file.url.startswith(url) for file in archive.files)
        async with httpx.AsyncClient() as client:
            fetched = {file.name: (await client.get(file.url)).content for file in archive.files}
    assert fetched == FILES


def test_curl_fetches_a_file_with_its_url_alone(up, stored, tmp_path):
    (url,) = [
        file["url"]
        for file in up.call("GET", f"/v1/checkpoints/{PATH.checkpoint_id}/archive")["files"]
        if file["name"] == "adapter_model.safetensors"
    ]
    subprocess.run(["curl", "-sSf", "-o", str(tmp_path / "got"), url], check=True, timeout=30)
    assert (tmp_path / "got").read_bytes() == FILES["adapter_model.safetensors"]


async def test_urls_expire_and_are_paged(tmp_path):
    now = 1000.0
    store = CheckpointStore(tmp_path)
    files = {f"file-{i:03}": bytes([i]) for i in range(250)}
    store.write(PATH, files, {})
    checkpoints = Checkpoints(store, secret="key", clock=lambda: now)
    seen, page = [], ""
    while True:
        archive = await checkpoints.archive(PATH, base_url="http://here/", page=page)
        assert archive.expires_at == now + URL_TTL_S
        seen += archive.files
        page = archive.next_page
        if not page:
            break
    assert [file.name for file in seen] == sorted(files)
    query = {key: values[0] for key, values in parse_qs(urlsplit(seen[0].url).query).items()}
    assert (await checkpoints.file(PATH, "file-000", **query)).read_bytes() == b"\0"
    other = Checkpoints(store, secret="other key", clock=lambda: now)
    with pytest.raises(Forbidden, match="not signed"):
        await other.file(PATH, "file-000", **query)
    now += URL_TTL_S
    with pytest.raises(Forbidden, match="expired"):
        await checkpoints.file(PATH, "file-000", **query)
    now -= URL_TTL_S
    store.delete(PATH)
    with pytest.raises(NotFound):
        await checkpoints.file(PATH, "file-000", **query)


@pytest.fixture
def command(up, monkeypatch, capsys):
    """`farstep checkpoints …` against the running control plane: exit code and output."""
    monkeypatch.setenv("FARSTEP_BASE_URL", up.url)
    monkeypatch.setenv("FARSTEP_API_KEY", up.key)

    def run(*arguments):
        code = main(["checkpoints", *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_the_command_lists_keeps_and_removes(command, stored):
    path = CheckpointPath("run:cli", "weights", "one")
    stored.write(path, FILES, META)
    code, out, _ = command("list", path.run_id, "--json")
    (listed,) = json.loads(out)
    assert (code, listed["path"], listed["step"], listed["expires_at"]) == (0, str(path), 10, None)
    assert "bt://loops" in command("list", path.run_id)[1]
    assert json.loads(command("get", str(path), "--json")[1]) == listed
    code, out, _ = command("ttl", path.checkpoint_id, "60", "--json")
    assert code == 0
    assert json.loads(out)[0]["expires_at"]
    assert json.loads(command("ttl", str(path), "never", "--json")[1])[0]["expires_at"] is None
    code, _, said = command("delete", str(path))
    assert (code, "say --yes" in said) == (1, True), "nobody can be asked here"
    assert command("delete", str(path), "--yes")[0] == 0
    code, _, said = command("delete", str(path), "--yes")
    assert (code, "no checkpoint bt://loops:run:cli/weights/one" in said) == (1, True)
    assert command("get", "nonsense")[0] == 1


def test_the_command_exports(command, stored, tmp_path):
    code, out, _ = command("export", str(PATH), "--out", str(tmp_path / "out"))
    assert (code, out.strip()) == (0, str(tmp_path / "out"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == FILES
    code, _, said = command("export", str(PATH), "--out", str(tmp_path / "out"))
    assert (code, "is there already" in said) == (1, True)
    (stored.file_path(PATH, "adapter_config.json")).write_bytes(b"[]")
    try:
        code, _, said = command("export", str(PATH), "--out", str(tmp_path / "other"))
    finally:
        stored.file_path(PATH, "adapter_config.json").write_bytes(b"{}")
    assert (code, "another sha256" in said) == (1, True)
    assert not (tmp_path / "other").exists()
