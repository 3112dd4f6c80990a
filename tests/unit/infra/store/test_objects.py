"""Checkpoints in a bucket: damage by name, writers that died, a server that is gone, URLs that S3 signs."""

import json
import shutil
import subprocess

import boto3
import pytest

from farstep_infra.store.backing import ABANDONED_S
from farstep_infra.store.blobs import S3Blobs
from farstep_infra.store.checkpoints import open_store
from farstep_proto.errors import Conflict, Internal, InvalidInput, NotFound
from farstep_proto.names import CheckpointPath

PATH = CheckpointPath("run:1", "weights", "step-10")
FILES = {"adapter_model.safetensors": b"\x00weights", "adapter_config.json": b"{}"}
FOLDER = "p/run:1/weights/step-10/"


@pytest.fixture
def store(bucket, clock):
    return open_store(f"s3://{bucket}/p", clock=clock)


@pytest.fixture
def objects(bucket):
    """What lies in the bucket, behind the store's back."""
    return boto3.resource("s3").Bucket(bucket)


def keys(objects):
    return sorted(entry.key for entry in objects.objects.all())


def key_of(objects, name):
    (key,) = [key for key in keys(objects) if key.endswith("/" + name)]
    return key


def test_the_manifest_is_last_and_an_overwrite_leaves_nothing_of_the_old_one(store, objects):
    store.write(PATH, FILES, {})
    store.write(PATH, {"f": b"new"}, {}, overwrite=True)
    folder = json.loads(objects.Object(FOLDER + "manifest.json").get()["Body"].read())["files_in"]
    assert keys(objects) == sorted([f"{FOLDER}{folder}/f", f"{FOLDER}manifest.json"])
    store.delete(PATH)
    assert keys(objects) == []


def test_a_refused_write_leaves_nothing(store, objects):
    store.write(PATH, FILES, {})
    before = keys(objects)
    with pytest.raises(Conflict):
        store.write(PATH, {"f": b"new"}, {})
    assert keys(objects) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_model.safetensors", b"\x00weightz", "adapter_model.safetensors has another sha256"),
        ("adapter_model.safetensors", b"\x00we", "has 3 bytes instead of 8"),
        ("adapter_config.json", None, "adapter_config.json is missing"),
        ("manifest.json", b"{", "its manifest is damaged"),
        ("manifest.json", b"[]", "its manifest is damaged"),
    ],
)
def test_damage_is_refused_by_name(store, objects, name, content, said):
    store.write(PATH, FILES, {})
    damaged = objects.Object(key_of(objects, name))
    damaged.delete() if content is None else damaged.put(Body=content)
    with pytest.raises(InvalidInput, match=said) as caught:
        store.read(PATH)
    assert str(PATH) in caught.value.message
    if name == "manifest.json":
        assert store.list("run:1") == []
        with pytest.raises(Conflict):
            store.write(PATH, FILES, {})
    store.delete(PATH)
    assert keys(objects) == []
    store.write(PATH, FILES, {})


def test_without_its_manifest_it_does_not_exist(store, objects, clock):
    """As a writer leaves it that was killed before its last step."""
    store.write(PATH, FILES, {})
    objects.Object(FOLDER + "manifest.json").delete()
    with pytest.raises(NotFound, match="incomplete"):
        store.read(PATH)
    assert store.list("run:1") == []
    store.write(PATH, {"f": b"new"}, {})
    assert store.read(PATH)[1] == {"f": b"new"}
    newest = max(entry.last_modified.timestamp() for entry in objects.objects.all())
    clock.now = newest + ABANDONED_S - 60
    assert store.sweep() == 0, "a young one may have a living writer"
    clock.now = newest + ABANDONED_S + 60
    assert store.sweep() == 1
    assert store.read(PATH)[1] == {"f": b"new"}
    assert len(keys(objects)) == 2


def test_a_manifest_cannot_point_outside_its_folder(store, objects):
    store.write(PATH, FILES, {})
    manifest = objects.Object(FOLDER + "manifest.json")
    content = json.loads(manifest.get()["Body"].read())
    for bent in ({"files_in": "../other"}, {"files": {"../../secret": {"size_bytes": 1, "sha256": "00"}}}):
        manifest.put(Body=json.dumps(content | bent).encode())
        with pytest.raises(InvalidInput, match="manifest is damaged"):
            store.read(PATH)


def test_a_large_file_goes_up_in_parts(store, monkeypatch):
    monkeypatch.setattr("farstep_infra.store.blobs._SINGLE_PUT_BYTES", 1 << 20)
    files = {"big": bytes(range(256)) * (40 << 10)}  # 10 MiB: two parts
    store.write(PATH, files, {})
    assert store.read(PATH)[1] == files


def test_curl_fetches_by_a_signed_url_alone(store, tmp_path):
    store.write(PATH, FILES, {})
    url = store.signed_url(PATH, "adapter_model.safetensors", ttl_s=60)
    curl = shutil.which("curl")
    assert curl, "the test needs curl"
    subprocess.run([curl, "-sSf", "-o", str(tmp_path / "got"), url], check=True, timeout=30)
    assert (tmp_path / "got").read_bytes() == FILES["adapter_model.safetensors"]
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "X-Amz-Expires=60" in url
    with pytest.raises(NotFound):
        store.signed_url(PATH, "other", ttl_s=60)
    with pytest.raises(NotFound, match="not on this machine"):
        store.file_path(PATH, "adapter_model.safetensors")


def test_no_bucket_is_a_clear_error(s3):
    with pytest.raises(Internal, match=r"s3://nobody-has-this/p/ refuses .*NoSuchBucket") as caught:
        open_store("s3://nobody-has-this/p").write(PATH, FILES, {})
    assert caught.value.hint


def test_a_server_that_is_gone_is_a_clear_error(monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Internal, match="does not answer"):
        open_store("s3://bucket/p").read(PATH)


@pytest.mark.parametrize("place", ["s3://", "s3://b?x=1", "ftp://b/p", ""])
def test_a_place_that_is_none_is_refused(place):
    with pytest.raises(InvalidInput) as caught:
        open_store(place)
    assert caught.value.field == "--store"


def test_a_bucket_without_boto3_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(InvalidInput) as caught:
        open_store("s3://bucket/p")
    assert "farstep[s3]" in caught.value.hint


def test_two_changes_at_once_are_made_one_after_the_other(store, monkeypatch):
    """A TTL that is set while the checkpoint is overwritten never brings the old manifest back."""
    store.write(PATH, FILES, {})
    real, calls = S3Blobs.put_if, []

    def overtaken(self, key, data, *, tag):
        calls.append(tag)
        if len(calls) == 1:
            store.write(PATH, {"f": b"new"}, {}, overwrite=True)
        real(self, key, data, tag=tag)

    monkeypatch.setattr(S3Blobs, "put_if", overtaken)
    store.set_ttl(PATH, 60)
    assert store.read(PATH)[1] == {"f": b"new"}
    assert store.manifest(PATH).expires_at is not None
