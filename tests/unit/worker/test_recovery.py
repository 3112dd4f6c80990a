"""A trainer that is killed: every record boundary is an instant at which it may die, and each is recovered from."""

import asyncio
import shutil
import threading
from contextlib import asynccontextmanager

import pytest

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import PolicyShelves
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.evicted import EvictedRuns
from farstep_worker.executor import Executor
from farstep_worker.journal.folder import locked
from farstep_worker.journal.journal import open_journal
from farstep_worker.journal.writer import Writer
from farstep_worker.snapshots import SnapshotLimits
from tests.unit.worker.wire import ADAM, GatedExecutor, error_of, serving, until

IDENTITY = {"model": "farstep/tiny", "dtype": "float32"}
SOMETIMES = SnapshotLimits(operations=3, worth=0.0)
NEVER = SnapshotLimits(seconds=1e9, operations=10**9, num_bytes=1 << 60, worth=1e9)


@asynccontextmanager
async def worker(layers, root, *, snapshots=NEVER, max_bytes=1 << 30, executor=None, **settings):
    """A trainer on the store and journal under `root`, as a process has them; yields its client."""
    executor = executor or Executor(layers, CheckpointStore(root / "store"), token_budget=128)
    with locked(root / "journal") as folder:
        journal = open_journal(folder, IDENTITY, {}, max_bytes=max_bytes)
        try:
            async with serving(executor, journal=journal, snapshots=snapshots, **settings) as trainer:
                trainer.executor = executor
                trainer.journal = journal
                yield trainer
        finally:
            await asyncio.to_thread(journal.close)
            executor.publisher.flush()


def script(request_of):
    """A run's life with something of everything, by seq."""
    small = {"lengths": (5, 3)}
    return [
        ("forward_backward", request_of(**small)),
        ("optim_step", ADAM),
        ("optim_step", ADAM),  # fails: there is no gradient
        ("forward", request_of(seed=1, **small)),
        ("publish", pb.PublishRequest(name="first")),
        ("forward_backward", request_of(seed=2, **small)),
        ("save_state", pb.SaveStateRequest(name="kept", overwrite=True)),
        ("optim_step", ADAM),
        ("publish", pb.PublishRequest()),
        ("publish", pb.PublishRequest(name="first")),  # fails: the name is taken
        ("load_state", pb.LoadStateRequest(path="bt://loops:run/weights/kept", optimizer=True)),
        ("forward_backward", request_of(seed=3, **small)),
        ("optim_step", ADAM),
        ("save_state", pb.SaveStateRequest(name="kept", overwrite=True)),
        ("skip", pb.SkipRequest()),
        ("reset", pb.ResetRequest(lora_rank=2)),
        ("forward_backward", request_of(seed=4, **small)),
        ("optim_step", ADAM),
        ("publish", pb.PublishRequest()),
    ]


async def play(trainer, calls, *, on_accepted=lambda seq: None, on_told=lambda seq, outcome: None):
    """A client that has three operations under way; what became of each."""
    told = {}

    async def tell(seq):
        told[seq] = await trainer.outcome(f"run:{seq}")
        on_told(seq, told[seq])

    await trainer.create()
    waiting = []
    for seq, (verb, message) in enumerate(calls, start=1):
        response = await trainer.submit(verb, message, seq)
        assert response.status_code == 202, error_of(response)
        on_accepted(seq)
        waiting.append(asyncio.create_task(tell(seq)))
        if len(waiting) >= 3:
            await waiting[-3]
    await asyncio.gather(*waiting)
    return told


def end_of(trainer):
    """All that a run is, and where it is published."""
    run = trainer.executor.runs["run"]
    tensors = {name: tensor.clone() for name, tensor in run.tensors().items()}
    return tensors, (run.step, run.random, run.policy_version, run.seq, run.is_at_start)


def assert_same_end(found, expected):
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    for name, tensor in found[0].items():
        assert tensor.equal(expected[0][name]), name


class Killing:
    """Copies store and journal at every boundary of the writing thread: what a kill at that instant would leave."""

    def __init__(self, monkeypatch, root, into):
        self.accepted, self.told = set(), {}
        self.instants = []
        transact = Writer._transact
        killing = self

        def copying(writer, tables, batch):
            killing.copy(root, into)
            transact(writer, tables, batch)
            killing.copy(root, into)

        monkeypatch.setattr(Writer, "_transact", copying)

    def copy(self, root, into):
        state = (set(self.accepted), dict(self.told))
        target = into / str(len(self.instants))
        for _ in range(5):
            try:
                shutil.copytree(root, target, ignore=shutil.ignore_patterns("reserve~", "lock~"))
            except shutil.Error:  # a file was renamed meanwhile, by another thread
                shutil.rmtree(target)
                continue
            self.instants.append((target, *state))
            return


@pytest.mark.parametrize("snapshots", [NEVER, SOMETIMES], ids=["replay", "snapshots"])
async def test_a_kill_between_any_two_records_changes_nothing(
    layers, tmp_path, request_of, monkeypatch, snapshots
):
    calls = script(request_of)
    async with worker(layers, tmp_path / "undisturbed", snapshots=snapshots) as trainer:
        expected = await play(trainer, calls)
        expected_end = end_of(trainer)
    failed = {seq for seq, outcome in expected.items() if outcome.state == operations_pb2.OPERATION_STATE_FAILED}
    assert failed == {3, 10}
    with monkeypatch.context() as patch:
        killing = Killing(patch, tmp_path / "killed", tmp_path / "copies")
        async with worker(layers, tmp_path / "killed", snapshots=snapshots) as trainer:
            found = await play(
                trainer, calls, on_accepted=killing.accepted.add, on_told=killing.told.__setitem__
            )
    assert found == expected
    assert len(killing.instants) > 20
    for copy, accepted, told in killing.instants[:: 3 if snapshots is NEVER else 2]:
        async with worker(layers, copy, snapshots=snapshots) as trainer:
            table = trainer.dispatcher.table
            for seq in accepted:
                assert table.clients(f"run:{seq}") == ("me",), seq
            assert await play(trainer, calls) == expected
            assert {seq: expected[seq] for seq in told} == told
            assert_same_end(end_of(trainer), expected_end)
            trainer.executor.publisher.flush()
            shelf = PolicyShelves.of_store(trainer.executor.store).shelf("run")
            assert [policy.version for policy in shelf.policies] == [1, 2, 3]
        shutil.rmtree(copy)
