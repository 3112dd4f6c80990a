"""The checkpoint store: whole or absent, whatever happens to writer, reader or disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from farstep_infra.store import directories as module
from farstep_infra.store.checkpoints import CLOCK_SKEW_S, CheckpointStore
from farstep_proto.errors import Conflict, Internal, InvalidInput, NotFound, StorageFull
from farstep_proto.names import CheckpointPath

PATH = CheckpointPath("run:1", "weights", "step-10")
FILES = {"adapter_model.safetensors": b"\x00weights", "adapter_config.json": b"{}"}
META = {"base_model": "farstep/tiny", "step": 10, "lora": {"rank": 4}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def names_on_disk(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != "lock~")


def test_what_is_written_is_read_and_lies_there_as_plain_files(store, tmp_path):
    written = store.write(PATH, FILES, META)
    manifest, files = store.read(PATH)
    assert files == FILES
    assert manifest == written
    assert manifest.meta == META
    assert manifest.size_bytes == sum(map(len, FILES.values()))
    assert manifest.expires_at is None
    directory = tmp_path / "run:1" / "weights" / "step-10"
    assert {path.name for path in directory.iterdir()} == {*FILES, "manifest.json"}
    assert store.file_path(PATH, "adapter_config.json") == directory / "adapter_config.json"
    assert CheckpointStore(tmp_path).read(PATH)[1] == FILES  # another process sees it


def test_an_existing_name_is_refused_unless_overwritten(store, tmp_path):
    store.write(PATH, FILES, META)
    with pytest.raises(Conflict, match="step-10 exists") as caught:
        store.write(PATH, {"f": b"new"}, {})
    assert caught.value.field == "name"
    assert store.read(PATH)[1] == FILES
    store.write(PATH, {"f": b"new"}, {"step": 11}, overwrite=True)
    assert store.read(PATH)[1] == {"f": b"new"}
    assert not [name for name in names_on_disk(tmp_path) if "~" in name]


def test_list_has_both_kinds_of_one_run_oldest_first(tmp_path):
    clock = Clock()
    store = CheckpointStore(tmp_path, clock=clock)
    sampler = CheckpointPath("run:1", "sampler_weights", "a")
    for path in (PATH, sampler, CheckpointPath("run:2", "weights", "other")):
        clock.now += 1
        store.write(path, FILES, META)
    assert [manifest.path for manifest in store.list("run:1")] == [PATH, sampler]
    assert store.list("unheard-of") == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_killed_overwrite_leaves_the_old_checkpoint(store, tmp_path, overwrite):
    store.write(PATH, FILES, META)
    final = tmp_path / "run:1" / "weights" / "step-10"
    final.rename(final.with_name("step-10~was"))  # the state between the two renames of an overwrite
    assert store.read(PATH)[1] == FILES
    assert [manifest.path for manifest in store.list("run:1")] == [PATH]
    if overwrite:
        store.write(PATH, {"f": b"new"}, {}, overwrite=True)
        assert store.read(PATH)[1] == {"f": b"new"}
        assert not final.with_name("step-10~was").exists()
    else:
        with pytest.raises(Conflict):
            store.write(PATH, {"f": b"new"}, {})
        store.delete(PATH)
        with pytest.raises(NotFound):
            store.read(PATH)


def test_readers_see_old_or_new_while_it_is_overwritten(store):
    contents = [{name: f"{name}{i}".encode() * 500 for name in "abc"} for i in range(2)]
    store.write(PATH, contents[0], {})
    stop = threading.Event()

    def overwrite() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.write(PATH, contents[turn % 2], {}, overwrite=True)

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        seen = []
        for _ in range(150):
            try:
                seen.append(store.read(PATH)[1])
            except Conflict:  # overwritten during each of its attempts
                continue
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 75
    assert all(files in contents for files in seen)


def test_two_writers_of_one_name_one_wins(store):
    outcomes = []

    def write(content: bytes) -> None:
        try:
            store.write(PATH, {"f": content}, {})
            outcomes.append(content)
        except Conflict:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(bytes([i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [content for content in outcomes if content is not None]
    assert len(winners) == 1
    assert store.read(PATH)[1] == {"f": winners[0]}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x00weightz"),
            "adapter_model.safetensors has another",
        ),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x00we"), "has 3 bytes instead of 8"),
        (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda d: (d / "manifest.json").write_bytes(b"{"), "its manifest is damaged"),
        (lambda d: (d / "manifest.json").write_bytes(b"[]"), "its manifest is damaged"),
    ],
)
def test_damage_is_refused_by_name(store, tmp_path, damage, said):
    store.write(PATH, FILES, META)
    damage(tmp_path / "run:1" / "weights" / "step-10")
    with pytest.raises(InvalidInput, match=said) as caught:
        store.read(PATH)
    assert str(PATH) in caught.value.message
    store.delete(PATH)
    store.write(PATH, FILES, META)


def test_a_manifest_cannot_point_outside_its_directory(store, tmp_path):
    store.write(PATH, FILES, META)
    manifest = tmp_path / "run:1" / "weights" / "step-10" / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["files"]["../../../secret"] = {"size_bytes": 1, "sha256": "00"}
    manifest.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match="manifest is damaged"):
        store.read(PATH)


def test_without_its_manifest_it_does_not_exist(store, tmp_path):
    store.write(PATH, FILES, META)
    (tmp_path / "run:1" / "weights" / "step-10" / "manifest.json").unlink()
    with pytest.raises(NotFound, match="incomplete"):
        store.read(PATH)
    assert store.list("run:1") == []
    store.write(PATH, {"f": b"new"}, {})
    assert store.read(PATH)[1] == {"f": b"new"}


def test_a_damaged_one_is_left_out_of_the_list_and_not_replaced_unasked(store, tmp_path):
    store.write(PATH, FILES, META)
    good = CheckpointPath("run:1", "weights", "good")
    store.write(good, FILES, META)
    (tmp_path / "run:1" / "weights" / "step-10" / "manifest.json").write_text("gone")
    assert [manifest.path for manifest in store.list("run:1")] == [good]
    with pytest.raises(Conflict):
        store.write(PATH, FILES, META)


def test_expired_ones_are_hidden_and_swept(tmp_path):
    clock = Clock()
    store = CheckpointStore(tmp_path, clock=clock)
    assert store.write(PATH, FILES, META, ttl_seconds=60).expires_at == 1060.0
    keep = CheckpointPath("run:1", "weights", "keep")
    store.write(keep, FILES, META)
    assert store.sweep() == 0
    clock.now += 60
    with pytest.raises(NotFound, match="expired"):
        store.read(PATH)
    assert [manifest.path for manifest in store.list("run:1")] == [keep]
    assert store.sweep() == 0, "somebody's clock may be behind"
    clock.now += CLOCK_SKEW_S
    assert store.sweep() == 1
    assert not (tmp_path / "run:1" / "weights" / "step-10").exists()
    store.write(PATH, FILES, META)


def test_an_expired_name_can_be_taken_again(tmp_path):
    clock = Clock()
    store = CheckpointStore(tmp_path, clock=clock)
    store.write(PATH, FILES, META, ttl_seconds=1)
    clock.now += 2
    store.write(PATH, {"f": b"new"}, {})
    assert store.read(PATH)[1] == {"f": b"new"}


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from farstep_infra.store import checkpoints, directories
from farstep_proto.names import CheckpointPath
directories.sync_directory = lambda path: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.CheckpointStore(Path(sys.argv[1])).write(CheckpointPath("run:1", "weights", "step-10"), {"f": b"x"}, {})
"""


def test_a_writer_killed_before_the_rename_leaves_no_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    store = CheckpointStore(tmp_path)
    assert store.list("run:1") == []
    with pytest.raises(NotFound):
        store.read(PATH)
    (left,) = (tmp_path / "run:1" / "weights").iterdir()
    assert store.sweep() == 0, "a young one may have a living writer"
    os.utime(left, (0, 0))
    assert store.sweep() == 1
    assert not left.exists()


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [(errno.ENOSPC, StorageFull, "no space left"), (errno.EACCES, Internal, "cannot write")],
)
def test_a_failing_disk_is_a_clear_error_and_leaves_nothing(store, tmp_path, monkeypatch, number, kind, said):
    store.write(PATH, FILES, META)
    before = names_on_disk(tmp_path)
    real = module.write_file

    def failing(path: Path, data: bytes) -> None:
        if path.name == "adapter_config.json":
            raise OSError(number, os.strerror(number))
        real(path, data)

    monkeypatch.setattr(module, "write_file", failing)
    with pytest.raises(kind, match=said) as caught:
        store.write(PATH, FILES, META, overwrite=True)
    assert caught.value.hint
    assert names_on_disk(tmp_path) == before
    assert store.read(PATH)[1] == FILES


@pytest.mark.parametrize(
    "path",
    [
        CheckpointPath("run:1", "weights", "../x"),
        CheckpointPath("run:1", "weights", ".."),
        CheckpointPath("run:1", "weights", "a~b"),
        CheckpointPath("../run", "weights", "x"),
        CheckpointPath("run:1", "../../etc", "x"),
    ],
)
def test_hostile_paths_are_refused_by_every_call(store, tmp_path, path):
    for call in (
        lambda: store.write(path, FILES, META),
        lambda: store.read(path),
        lambda: store.delete(path),
        lambda: store.file_path(path, "f"),
    ):
        with pytest.raises(InvalidInput):
            call()
    assert names_on_disk(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "manifest.json", "x~1"])
def test_hostile_file_names_are_refused(store, name):
    with pytest.raises(InvalidInput) as caught:
        store.write(PATH, {name: b""}, {})
    assert caught.value.field == "files"


def test_nonsense_is_refused_by_field(store):
    with pytest.raises(InvalidInput) as caught:
        store.write(PATH, {}, {})
    assert caught.value.field == "files"
    for ttl in (0, -1, float("nan")):
        with pytest.raises(InvalidInput) as caught:
            store.write(PATH, FILES, META, ttl_seconds=ttl)
        assert caught.value.field == "ttl_seconds"
    store.write(PATH, FILES, META)
    with pytest.raises(NotFound):
        store.file_path(PATH, "manifest.json")


def test_delete_removes_it_and_says_when_there_is_none(store, tmp_path):
    store.write(PATH, FILES, META)
    store.delete(PATH)
    assert store.list("run:1") == []
    with pytest.raises(NotFound):
        store.delete(PATH)
    with pytest.raises(NotFound):
        store.delete(CheckpointPath("unheard-of", "weights", "x"))
    assert not (tmp_path / "unheard-of").exists()
