"""What holds for every store, in a directory and in a bucket of a real S3 server alike."""

import threading

import pytest

from farstep_infra.store.checkpoints import CLOCK_SKEW_S, open_store
from farstep_proto.errors import Conflict, InvalidInput, NotFound
from farstep_proto.names import CheckpointPath

PATH = CheckpointPath("run:1", "weights", "step-10")
POLICY = CheckpointPath("run:1", "sampler_weights", "step-10")
FILES = {"adapter_model.safetensors": b"\x00weights", "adapter_config.json": b"{}"}
META = {"base_model": "farstep/tiny", "step": 10, "lora": {"rank": 4}}


def test_what_is_written_is_read_by_another_process_and_named_alike(any_store, place, clock):
    written = any_store.write(PATH, FILES, META)
    other = open_store(place, clock=clock)
    manifest, files = other.read(PATH)
    assert files == FILES
    assert (manifest.created_at, manifest.files, manifest.meta) == (written.created_at, written.files, META)
    assert other.manifest(PATH) == manifest


def test_an_existing_name_is_refused_unless_overwritten(any_store):
    any_store.write(PATH, FILES, META)
    with pytest.raises(Conflict, match="step-10 exists") as caught:
        any_store.write(PATH, {"f": b"new"}, {})
    assert caught.value.field == "name"
    assert any_store.read(PATH)[1] == FILES
    any_store.write(PATH, {"f": b"new"}, {"step": 11}, overwrite=True)
    assert any_store.read(PATH)[1] == {"f": b"new"}


def test_of_writers_of_one_name_one_wins(place):
    start, outcomes = threading.Barrier(6), []

    def write(content: bytes) -> None:
        store = open_store(place)
        start.wait()
        try:
            store.write(PATH, {"f": content}, {})
            outcomes.append(content)
        except Conflict:
            outcomes.append(None)

    _all_at_once(write, [(bytes([i]),) for i in range(6)])
    (winner,) = [content for content in outcomes if content is not None]
    assert open_store(place).read(PATH)[1] == {"f": winner}


def test_readers_see_old_or_new_while_it_is_overwritten(place):
    store = open_store(place)
    contents = [{name: f"{name}{i}".encode() * 500 for name in "abc"} for i in range(2)]
    store.write(PATH, contents[0], {})
    stop = threading.Event()

    def overwrite(first: int) -> None:
        writer, turn = open_store(place), first
        while not stop.is_set():
            turn += 1
            writer.write(PATH, contents[turn % 2], {}, overwrite=True)

    writers = [threading.Thread(target=overwrite, args=(i,)) for i in range(2)]
    for writer in writers:
        writer.start()
    try:
        seen = []
        for _ in range(30):
            try:
                seen.append(store.read(PATH)[1])
            except Conflict:  # overwritten during each of its attempts
                continue
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert seen
    assert all(files in contents for files in seen)


def test_list_has_both_kinds_of_one_run_oldest_first(any_store, clock):
    for path in (POLICY, PATH, CheckpointPath("run:2", "weights", "other")):
        clock.now += 1
        any_store.write(path, FILES, META)
    assert [manifest.path for manifest in any_store.list("run:1")] == [POLICY, PATH]
    assert any_store.list("unheard-of") == []


def test_an_expired_one_is_neither_listed_nor_read_and_says_when_it_went(any_store, clock):
    any_store.write(PATH, FILES, META, ttl_seconds=60)
    any_store.write(POLICY, FILES, META)
    clock.now += 60
    with pytest.raises(NotFound, match=r"has expired, on 2027-01-15 at 08:01:00 UTC"):
        any_store.read(PATH)
    assert [manifest.path for manifest in any_store.list("run:1")] == [POLICY]
    with pytest.raises(NotFound, match="has expired"):
        any_store.set_ttl(PATH, None)
    assert any_store.sweep() == 0, "somebody's clock may be behind"
    clock.now += CLOCK_SKEW_S
    assert any_store.sweep() == 1
    with pytest.raises(NotFound, match=r"^no checkpoint"):
        any_store.read(PATH)
    assert any_store.read(POLICY)[1] == FILES


def test_an_expired_name_can_be_taken_again(any_store, clock):
    any_store.write(PATH, FILES, META, ttl_seconds=1)
    clock.now += 2
    any_store.write(PATH, {"f": b"new"}, {})
    assert any_store.read(PATH)[1] == {"f": b"new"}


def test_a_ttl_is_set_and_taken_back(any_store, clock):
    any_store.write(PATH, FILES, META, ttl_seconds=60)
    clock.now += 30
    assert any_store.set_ttl(PATH, 90).expires_at == clock.now + 90
    clock.now += 60
    assert any_store.read(PATH)[1] == FILES
    assert any_store.set_ttl(PATH, None).expires_at is None
    clock.now += 1e9
    assert any_store.read(PATH)[1] == FILES
    with pytest.raises(NotFound):
        any_store.set_ttl(POLICY, 5)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput) as caught:
            any_store.set_ttl(PATH, wrong)
        assert caught.value.field == "ttl_seconds"


def test_delete_removes_it_and_says_when_there_is_none(any_store):
    any_store.write(PATH, FILES, META)
    any_store.delete(PATH)
    assert any_store.list("run:1") == []
    for path in (PATH, CheckpointPath("unheard-of", "weights", "x")):
        with pytest.raises(NotFound):
            any_store.delete(path)
    any_store.write(PATH, FILES, META)


@pytest.mark.parametrize(
    "path",
    [
        CheckpointPath("run:1", "weights", "../x"),
        CheckpointPath("run:1", "weights", "a~b"),
        CheckpointPath("../run", "weights", "x"),
        CheckpointPath("run:1", "../../etc", "x"),
    ],
)
def test_hostile_paths_are_refused_by_every_call(any_store, path):
    for call in (
        lambda: any_store.write(path, FILES, META),
        lambda: any_store.read(path),
        lambda: any_store.delete(path),
        lambda: any_store.set_ttl(path, 5),
        lambda: any_store.signed_url(path, "f", ttl_s=5),
    ):
        with pytest.raises(InvalidInput):
            call()


def _all_at_once(target, arguments):
    threads = [threading.Thread(target=target, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_public_checkpoint_is_read_by_every_project_until_it_is_taken_back_or_replaced(any_store):
    any_store.write(PATH, FILES, {**META, "project": "alpha"})
    assert any_store.may_read(PATH, "alpha")
    assert not any_store.may_read(PATH, "beta")
    assert not any_store.is_public(POLICY)
    any_store.set_public(PATH, True)
    assert any_store.may_read(PATH, "beta")
    assert any_store.manifest(PATH).to_proto().public
    assert any_store.set_ttl(PATH, 60).public
    any_store.set_public(PATH, False)
    assert not any_store.may_read(PATH, "beta")
    any_store.set_public(PATH, True)
    any_store.write(PATH, FILES, {**META, "project": "alpha"}, overwrite=True)
    assert not any_store.is_public(PATH)
    with pytest.raises(NotFound):
        any_store.set_public(POLICY, True)


def test_a_store_knows_its_runs_and_all_kinds_of_their_checkpoints(any_store):
    external = CheckpointPath("run:1", "external_weights", "out")
    for path in (PATH, POLICY, external):
        any_store.write(path, FILES, META)
    assert any_store.runs() == ["run:1"]
    assert {str(manifest.path) for manifest in any_store.list("run:1")} == {str(PATH), str(POLICY), str(external)}
    assert CheckpointPath.parse("tinker://run:1/external_weights/out") == external
    assert external.tinker_path == "tinker://run:1/external_weights/out"
