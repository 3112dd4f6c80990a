"""Runs leave memory and come back as if nothing had been, bit for bit; the disk may fail."""

import dataclasses
import errno
import gc
import threading

import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_proto.names import CheckpointPath
from farstep_worker.evicted import FOLDER, EvictedRuns, remove_stale
from farstep_worker.executor import Executor
from farstep_worker.residence import Residence
from farstep_worker.submission import LoadState, Publish, Reset, SaveState
from tests.unit.worker.test_executor import ADAM, failed, snapshot, succeeded

NOBODY = {"is_busy": lambda run_id: False}


@pytest.fixture
def evicted(tmp_path):
    evicted = EvictedRuns(tmp_path / "store")
    yield evicted
    evicted.close()


@pytest.fixture
def executor(layers, tmp_path, evicted):
    """There is no room for any run at all."""
    store = CheckpointStore(tmp_path / "store")
    return Executor(layers, store, token_budget=128, evicted=evicted, run_memory_bytes=0)


def everything_of(run):
    """Every tensor that can be reached from a run, but for the base model's."""
    found, seen, todo = {}, set(), [run]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (str, int, float, type, torch.nn.Module)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found[id(thing)] = thing
        elif thing is not run.adapter.layers:
            todo += gc.get_referents(thing)
    return found.values()


def files_of(store):
    return [path for path in (store / FOLDER).rglob("*") if path.is_file() and "lock~" not in path.name]


def train(executor, make_pass, run_id="run", seed=0):
    succeeded(executor.execute(run_id, make_pass(seed=seed)))
    succeeded(executor.execute(run_id, ADAM))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_run_comes_back_bit_for_bit_with_all_that_it_has(executor, evicted, make_run, make_pass, tmp_path, on_disk):
    make_run("origin", warm=True)
    succeeded(executor.execute("origin", SaveState("warm", {}, None, False)))
    run = make_run("run", seed=3, dropout=0.2)
    succeeded(executor.execute("run", LoadState(CheckpointPath("origin", "weights", "warm"), optimizer=False)))
    train(executor, make_pass)
    succeeded(executor.execute("run", Publish("", None)))
    succeeded(executor.execute("run", make_pass(seed=4)))
    before, start, is_at_start = snapshot(run), run.start_adapter.to_bytes(), run.is_at_start
    told = run.to_proto(vocab_size=1, next_seq=1)
    assert run.num_bytes > 0
    disk = threading.Event()
    evicted._thread.submit(disk.wait, 20)
    if on_disk:
        disk.set()
    executor.make_room(**NOBODY)
    assert run.to_proto(vocab_size=1, next_seq=1) == told
    assert sum(tensor.nbytes for tensor in everything_of(run)) < 1000  # the steps that Adam has counted
    if on_disk:
        evicted.settle()
        assert len(files_of(tmp_path / "store")) == 2 * 2  # of both runs, with manifests
        assert not evicted._unwritten
    succeeded(executor.execute("run", make_pass(backward=False)))
    assert (snapshot(run)[1:], start, is_at_start) == (before[1:], run.start_adapter.to_bytes(), run.is_at_start)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(run)[0], before[0], strict=True))
    disk.set()
    evicted.settle()
    assert len(files_of(tmp_path / "store")) == 2


def test_training_goes_on_as_if_the_run_had_never_left(executor, evicted, layers, make_run, make_pass, tmp_path):
    staying = Executor(layers, CheckpointStore(tmp_path / "other"), token_budget=128)
    run = make_run("run", dropout=0.3)
    staying.create_run(run.config)
    for call in (make_pass(), make_pass(seed=1), ADAM, make_pass(seed=2), ADAM, Reset(2), make_pass(seed=3), ADAM):
        executor.make_room(**NOBODY)
        evicted.settle()
        assert run.away is not None
        succeeded(executor.execute("run", call))
        succeeded(staying.execute("run", call))
    assert snapshot(run) == snapshot(staying.runs["run"])


def test_all_of_a_run_leaves_memory_whatever_it_has(executor, make_run, make_pass):
    """A new field that keeps tensors must be added to `Run.tensors`."""
    run = make_run(warm=True)
    succeeded(executor.execute("run", SaveState("a", {}, None, False)))
    train(executor, make_pass)
    succeeded(executor.execute("run", make_pass()))
    before = sum(tensor.nbytes for tensor in everything_of(run))
    assert before - run.num_bytes == 4 * len(run.adapter.parameters())  # the steps that Adam has counted


def test_who_leaves():
    sizes = {"a": 5, "b": 3, "c": 4, "d": 2}

    def leaving(budget, busy="", last=()):
        residence = Residence(budget)
        for run_id in (*sizes, *last):
            residence.used(run_id, sizes[run_id])
        return residence.leaving(lambda run_id: run_id in busy)

    assert leaving(None) == leaving(14) == []
    assert leaving(13) == leaving(9) == ["a"]
    assert leaving(13, last="a") == ["b"]  # used just now
    assert leaving(8) == ["a", "b"]
    assert leaving(0, busy="bd") == ["a", "c"]
    assert leaving(0) == ["a", "b", "c", "d"]


def test_a_full_disk_keeps_a_run_in_memory(executor, evicted, make_run, make_pass, monkeypatch, caplog):
    run = make_run(warm=True)
    train(executor, make_pass)
    before = snapshot(run)

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("farstep_infra.store.directories.write_file", no_space)
        executor.make_room(**NOBODY)
        evicted.settle()
    assert "run run cannot leave memory and stays there: no space left" in caplog.text
    succeeded(executor.execute("run", make_pass(backward=False)))
    assert snapshot(run) == before
    executor.make_room(**NOBODY)
    assert run.away is None  # not tried again and again
    monkeypatch.setattr(evicted, "_retry_at", 0.0)
    executor.make_room(**NOBODY)
    evicted.settle()
    assert not evicted._unwritten
    succeeded(executor.execute("run", make_pass(backward=False)))
    assert snapshot(run) == before


@pytest.mark.parametrize("how", ["changed", "short", "missing", "no manifest"])
def test_damaged_files_fail_the_operations_of_that_run_alone(executor, evicted, make_run, make_pass, tmp_path, how):
    for run_id in ("run", "other"):
        make_run(run_id)
        train(executor, make_pass, run_id)
    executor.make_room(**NOBODY)
    evicted.settle()
    (folder,) = (tmp_path / "store" / FOLDER).glob("*/run/weights/evicted")
    file = folder / "tensors.safetensors"
    match how:
        case "changed":
            data = bytearray(file.read_bytes())
            data[-5] ^= 1
            file.write_bytes(data)
        case "short":
            file.write_bytes(file.read_bytes()[:-1])
        case "missing":
            file.unlink()
        case "no manifest":
            (folder / "manifest.json").unlink()
    for call in (make_pass(), ADAM, SaveState("a", {}, None, False), Publish("", None)):
        error = failed(executor.execute("run", call))
        assert error.error_class == "EvictedRunError"
        assert "run run left memory" in error.message
        assert "checkpoint" in error.hint
    train(executor, make_pass, "other")
    executor.delete_run("run")
    evicted.settle()
    assert not folder.exists()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_way_back_that_fails_may_be_tried_again(executor, evicted, make_run, make_pass, monkeypatch, on_disk):
    run = make_run(warm=True)
    train(executor, make_pass)
    before = snapshot(run)
    disk = threading.Event()
    evicted._thread.submit(disk.wait, 20)
    executor.make_room(**NOBODY)
    if on_disk:
        disk.set()
        evicted.settle()
    with monkeypatch.context() as patch:

        def no_room(run, tensors):
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr(executor, "restore", no_room)
        assert failed(executor.execute("run", make_pass())).error_class == "OutOfMemoryError"
    succeeded(executor.execute("run", make_pass(backward=False)))
    assert snapshot(run) == before
    disk.set()


def test_busy_runs_stay(executor, make_run):
    runs = [make_run(f"run-{i}") for i in range(3)]
    executor.make_room(is_busy=lambda run_id: run_id == "run-1")
    assert [run.away is None for run in runs] == [False, True, False]


def test_nothing_is_left_of_what_was_deleted_or_of_a_process_that_ended(executor, evicted, make_run, tmp_path):
    make_run("a"), make_run("b")
    executor.make_room(**NOBODY)
    executor.delete_run("a")
    evicted.settle()
    assert {path.relative_to(tmp_path / "store" / FOLDER).parts[1] for path in files_of(tmp_path / "store")} == {"b"}
    assert executor.store.list("b") == []
    evicted.close()
    assert [path.name for path in (tmp_path / "store" / FOLDER).iterdir()] == ["lock~"]


def test_only_what_dead_processes_left_is_removed(tmp_path, executor, evicted, make_run, make_pass):
    make_run()
    executor.make_room(**NOBODY)
    evicted.settle()
    stale = tmp_path / "store" / FOLDER / "0123456789abcdef~"
    (stale / "run").mkdir(parents=True)
    assert remove_stale(tmp_path / "store") == 1
    assert not stale.exists()
    assert executor.store.sweep() == 0
    succeeded(executor.execute("run", make_pass()))
    assert remove_stale(tmp_path / "none") == 0


def test_a_call_says_how_long_the_way_back_took(executor, make_run, make_pass):
    make_run()
    executor.make_room(**NOBODY)
    assert executor.execute("run", make_pass()).phases_s["restore"] > 0
    assert "restore" not in executor.execute("run", make_pass()).phases_s


def test_gradients_that_share_memory_come_back(executor, evicted, make_run, make_pass):
    """As those that several ranks have summed."""
    run = make_run()
    succeeded(executor.execute("run", make_pass()))
    flat = torch.cat([gradient.flatten() for gradient in run.gradients])
    parts = flat.split([gradient.numel() for gradient in run.gradients])
    run.gradients = [part.view(gradient.shape) for part, gradient in zip(parts, run.gradients, strict=True)]
    before = [gradient.clone() for gradient in run.gradients]
    executor.make_room(**NOBODY)
    evicted.settle()
    succeeded(executor.execute("run", dataclasses.replace(make_pass(), backward=False)))
    assert all(torch.equal(a, b) for a, b in zip(run.gradients, before, strict=True))
