"""Shelves of published policies in a directory and in a bucket, and numbers that never repeat."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from farstep_infra.store.blobs import FileBlobs, open_blobs
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_infra.store.policies import PolicyShelves, ShelvedPolicy
from farstep_infra.store.policy_archive import PolicyArchive
from farstep_infra.store.policy_numbers import Numbered, PolicyNumbers
from farstep_proto.errors import ApiError, Internal, InvalidInput, NotFound
from farstep_proto.names import CheckpointPath


@pytest.fixture(params=["file", "s3"])
def blobs(request, tmp_path):
    if request.param == "file":
        return open_blobs(f"file://{tmp_path}/shelves")
    return open_blobs(f"s3://{request.getfixturevalue('bucket')}/some/prefix/")


def policy(version, *, run_id="r", history="h", content=b"weights"):
    files = {"adapter_model.safetensors": content + str(version).encode(), "adapter_config.json": b"{}"}
    return ShelvedPolicy(run_id, version, history, 1000.0 + version, files)


def test_what_is_put_is_read(blobs):
    shelves = PolicyShelves(blobs, keep=3)
    assert shelves.runs() == []
    with pytest.raises(NotFound):
        shelves.shelf("r")
    shelves.put(policy(1))
    shelves.put(policy(1, run_id="other:run"))
    shelves.put(policy(2))
    assert shelves.read("r", 1) == policy(1)
    assert shelves.read("r", 2) == policy(2)
    assert shelves.shelf("r").newest.version == 2
    assert shelves.runs() == ["other:run", "r"]


def test_the_last_few_of_each_run_stay(blobs):
    shelves = PolicyShelves(blobs, keep=3)
    shelves.put(policy(1, run_id="quiet"))
    for version in range(1, 8):
        shelves.put(policy(version))
    assert [p.version for p in shelves.shelf("r").policies] == [5, 6, 7]
    assert shelves.read("quiet", 1).version == 1
    with pytest.raises(NotFound, match="version 4 of r is not kept any more; there are 5, 6, 7"):
        shelves.read("r", 4)
    with pytest.raises(NotFound):
        blobs.get("r/v4-h/adapter_model.safetensors")


def test_another_history_replaces_the_one_before(blobs):
    shelves = PolicyShelves(blobs, keep=3)
    shelves.put(policy(7))
    shelves.put(policy(1, history="new", content=b"other"))
    assert [p.version for p in shelves.shelf("r").policies] == [1]
    assert shelves.read("r", 1).history == "new"


def test_damage_is_found(blobs):
    shelves = PolicyShelves(blobs, keep=3)
    shelves.put(policy(1))
    blobs.put("r/v1-h/adapter_model.safetensors", b"weightsX")
    with pytest.raises(InvalidInput, match="sha256"):
        shelves.read("r", 1)
    blobs.put("r/manifest.json", b"{")
    with pytest.raises(InvalidInput, match="manifest"):
        shelves.shelf("r")
    shelves.put(policy(2))  # goes on
    assert shelves.read("r", 2) == policy(2)


def test_a_reader_beside_a_writer_never_sees_half_a_policy(tmp_path):
    shelves = PolicyShelves(FileBlobs(tmp_path), keep=1)
    shelves.put(policy(1))
    stop = threading.Event()

    def read():
        num = 0
        while not stop.is_set():
            version = shelves.shelf("r").newest.version
            try:
                assert shelves.read("r", version) == policy(version)
            except NotFound:
                continue  # it left meanwhile
            num += 1
        return num

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for version in range(2, 40):
            shelves.put(policy(version))
        stop.set()
        assert all(reader.result() for reader in readers)


def test_unused_shelves_are_swept_and_numbers_stay(tmp_path):
    shelves = PolicyShelves.of_store(CheckpointStore(tmp_path), keep=2)
    numbers = PolicyNumbers(CheckpointStore(tmp_path))
    numbers.reserve("r", above=0, begin=lambda: None)
    shelves.put(policy(1))
    shelves.put(policy(500, run_id="fresh"))
    assert shelves.sweep(before=1200) == 1
    with pytest.raises(NotFound):
        shelves.read("r", 1)
    assert shelves.read("fresh", 500)
    assert numbers.reserve("r", above=0, begin=lambda: None).version == 2


@pytest.mark.parametrize(
    "uri", ["", "file://relative/dir", "s3://", "http://x/y", "/plain/path", "file:///x?y=1", "s3://bucket/p#f"]
)
def test_a_uri_that_is_none_is_refused(uri):
    with pytest.raises(InvalidInput) as caught:
        open_blobs(uri, field="--weight-sync-uri")
    assert caught.value.field == "--weight-sync-uri"


def test_a_bucket_that_is_not_there_is_an_error_that_says_so(blobs, monkeypatch):
    if isinstance(blobs, FileBlobs):
        pytest.skip("of buckets")
    with pytest.raises(Internal, match="NoSuchBucket"):
        open_blobs("s3://nobody-made-this/x").put("r/manifest.json", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Internal, match="does not answer"):
        open_blobs("s3://b/x").get("r/manifest.json")


def test_numbers_rise_and_never_come_again(any_store):
    first = PolicyNumbers(any_store).reserve("r", above=0, begin=lambda: None)
    assert first.version == 1
    anew = PolicyNumbers(any_store)  # another process, whose run was loaded from before version 1
    second = anew.reserve("r", above=0, begin=lambda: None)
    assert second == Numbered(first.history, 2)
    assert anew.reserve("r", above=10, begin=lambda: None).version == 11
    assert anew.reserve("s", above=0, begin=lambda: None).history != first.history
    anew.give_back("r", second)  # too late: 11 was given since
    assert anew.reserve("r", above=0, begin=lambda: None).version == 12
    last = anew.reserve("r", above=0, begin=lambda: None)
    anew.give_back("r", last)
    assert anew.reserve("r", above=0, begin=lambda: None) == last


def test_two_writers_never_get_the_same_number(place):
    def reserve(_):
        return PolicyNumbers(open_store(place)).reserve("r", above=0, begin=lambda: None).version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(reserve, range(32))) == list(range(1, 33))


def test_damaged_numbers_stop_a_publication(tmp_path):
    numbers = PolicyNumbers(CheckpointStore(tmp_path))
    numbers.reserve("r", above=0, begin=lambda: None)
    path = tmp_path / "policies~" / "r" / "numbers.json"
    path.write_text(json.dumps({"version": "x"}))
    with pytest.raises(Internal, match="damaged"):
        numbers.reserve("r", above=0, begin=lambda: None)


def test_an_old_policy_is_found_on_the_shelf_or_in_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    archive = PolicyArchive(store)
    shelves = PolicyShelves.of_store(CheckpointStore(tmp_path), keep=1)
    meta = {"policy_version": 1, "history": "h"}
    store.write(CheckpointPath("r", "sampler_weights", "one"), dict(policy(1).files), meta)
    for version in (1, 2):
        shelves.put(policy(version))
    assert archive.read("r", 2, history="h").files == policy(2).files
    assert archive.read("r", 1, history="h").files == policy(1).files
    assert archive.read("r", 1, history="").history == "h"
    for version, history in ((1, "other"), (2, "other"), (3, "h")):
        with pytest.raises(NotFound):
            archive.read("r", version, history=history)
    with pytest.raises(ApiError):
        archive.read("../x", 1, history="")
