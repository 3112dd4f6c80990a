"""A trainer that is killed: every record boundary is an instant at which it may die, and each is recovered from."""

import asyncio
import os
import shutil
import subprocess
from contextlib import asynccontextmanager, closing, suppress

import pytest

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.policies import PolicyShelves
from farstep_proto.errors import Conflict
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.evicted import EvictedRuns
from farstep_worker.executor import Executor
from farstep_worker.journal.folder import locked
from farstep_worker.journal.journal import open_journal
from farstep_worker.journal.writer import Writer
from farstep_worker.rank_messages import to_command
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
async def test_a_kill_between_any_two_records_changes_nothing(layers, tmp_path, request_of, monkeypatch, snapshots):
    calls = script(request_of)
    async with worker(layers, tmp_path / "undisturbed", snapshots=snapshots) as trainer:
        expected = await play(trainer, calls)
        expected_end = end_of(trainer)
    failed = {seq for seq, outcome in expected.items() if outcome.state == operations_pb2.OPERATION_STATE_FAILED}
    assert failed == {3, 10}
    with monkeypatch.context() as patch:
        killing = Killing(patch, tmp_path / "killed", tmp_path / "copies")
        async with worker(layers, tmp_path / "killed", snapshots=snapshots) as trainer:
            found = await play(trainer, calls, on_accepted=killing.accepted.add, on_told=killing.told.__setitem__)
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


async def test_what_was_told_not_to_run_does_not(layers, tmp_path, request_of):
    """Cancelled, given up after a gap, deleted; and what only waited, waits again."""
    gated = GatedExecutor(Executor(layers, CheckpointStore(tmp_path / "store"), token_budget=128))
    message = request_of(lengths=(3,))
    async with worker(layers, tmp_path, executor=gated, gap_wait_s=0.2) as trainer:
        for run_id in ("run", "gap", "gone"):
            await trainer.create(run_id)
        await trainer.submit("forward", message, 2, run_id="gap")
        assert (await trainer.outcome("gap:2")).error.error_class == "MissingOperationError"
        gated.gate.clear()
        for seq in range(1, 5):
            await trainer.submit("forward_backward", message, seq)
        await trainer.submit("forward_backward", message, 5, part=1, parts=2)
        await trainer.submit("forward", message, 1, run_id="gone")
        await until(lambda: trainer.dispatcher.is_computing)
        assert (await trainer.http.post("/v1/operations/run:3/cancel")).json() == {"cancelled": True}
        assert (await trainer.http.delete("/v1/runs/gone")).status_code == 200
        again = asyncio.get_running_loop().call_later(0.3, gated.gate.set)
        stopping = trainer.dispatcher.drain()
        await trainer.poll(wait_s=0)
    again.cancel()
    assert stopping.done()
    async with worker(layers, tmp_path) as trainer:
        runs = (await trainer.http.get("/v1/runs")).json()["runs"]
        assert {run["run_id"]: run["next_seq"] for run in runs} == {"run": "6", "gap": "3"}
        states = [(await trainer.outcome(f"run:{seq}")).state for seq in range(1, 5)]
        succeeded, cancelled = operations_pb2.OPERATION_STATE_SUCCEEDED, operations_pb2.OPERATION_STATE_CANCELLED
        assert states == [succeeded, succeeded, cancelled, succeeded]
        assert (await trainer.outcome("gap:2")).error.error_class == "MissingOperationError"
        assert (await trainer.outcome("gone:1")).error.error_class == "RunDeletedError"
        assert (await trainer.create("gone")).status_code == 409
        assert (await trainer.submit("forward", message, 1, run_id="gap")).status_code == 409
        assert (await trainer.submit("forward_backward", message, 4)).status_code == 202
        assert (await trainer.submit("forward_backward", request_of(seed=9), 4)).status_code == 409
        await trainer.submit("forward_backward", message, 5, part=0, parts=2)
        assert (await trainer.outcome("run:5")).state == succeeded
        assert trainer.executor.runs["run"].random.draws == 4


async def test_a_client_that_asks_again_after_the_restart_is_answered(layers, tmp_path, request_of):
    async with worker(layers, tmp_path) as trainer:
        await trainer.create()
        await trainer.submit("forward", request_of(), 1, client="first")
        await trainer.submit("forward", request_of(), 1, client="second")
        await trainer.outcome("run:1")
        assert len((await trainer.poll("first")).finished) == 1
        await trainer.poll("first", ack=["run:1"], wait_s=0)
    async with worker(layers, tmp_path) as trainer:
        assert len((await trainer.poll("second")).finished) == 1
        assert not (await trainer.poll("first", wait_s=0)).finished


async def test_a_loss_that_came_with_its_call_is_computed_again(layers, tmp_path, make_custom_pass):
    """From what was written down alone, and also where no new ones are taken any more."""
    message = pb.ForwardRequest.FromString(to_command("run", make_custom_pass()).execute.body)
    async with worker(layers, tmp_path, custom_losses=True) as trainer:
        await trainer.create()
        for seq, (verb, body) in enumerate([("forward_backward", message), ("optim_step", ADAM)] * 2, start=1):
            assert (await trainer.submit(verb, body, seq)).status_code == 202
        assert (await trainer.outcome("run:4")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
        expected = end_of(trainer)
    async with worker(layers, tmp_path) as trainer:
        assert_same_end(end_of(trainer), expected)
        refused = await trainer.submit("forward_backward", message, 5)
        assert refused.status_code == 400
        assert (error_of(refused).field, "--custom-losses" in error_of(refused).hint) == ("loss_fn", True)


@pytest.mark.parametrize("num_damaged", [1, 2])
async def test_a_damaged_snapshot_costs_at_most_its_run(layers, tmp_path, request_of, num_damaged):
    message = request_of(lengths=(4,))

    async def steps(trainer, seqs, run_id="run"):
        for seq in seqs:
            verb, body = ("forward_backward", message) if seq % 2 else ("optim_step", ADAM)
            await trainer.submit(verb, body, seq, run_id=run_id)
        return [await trainer.outcome(f"{run_id}:{seq}") for seq in seqs]

    async with worker(layers, tmp_path / "straight") as trainer:
        await trainer.create()
        await steps(trainer, range(1, 13))
        expected = end_of(trainer)
    async with worker(layers, tmp_path, snapshots=SnapshotLimits(operations=4, worth=0.0)) as trainer:
        await trainer.create()
        await trainer.create("other")
        for first in (1, 5, 9):
            await steps(trainer, range(first, first + 4))
            await until(lambda seq=first + 3: trainer.dispatcher._keeper._kept.get("run", [0])[-1] >= seq)
        await steps(trainer, range(1, 3), "other")
        assert trainer.journal.num_bytes > 0
    snapshots = CheckpointStore(tmp_path / "journal" / "snapshots")
    newest = sorted(snapshots.list("run"), key=lambda manifest: -int(manifest.path.name.removeprefix("seq-")))
    assert [manifest.path.name for manifest in newest] == ["seq-12", "seq-8"]
    for manifest in newest[:num_damaged]:
        file = snapshots.file_path(manifest.path, "tensors.safetensors")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    async with worker(layers, tmp_path) as trainer:
        assert [outcome.state for outcome in await steps(trainer, range(3, 5), "other")] == [3, 3]
        if num_damaged == 1:
            assert_same_end(end_of(trainer), expected)
        else:
            (outcome,) = await steps(trainer, [13])
            assert outcome.error.error_class == "RunLostError"
            assert "damaged" in outcome.error.message


async def test_an_orderly_end_leaves_nothing_to_compute_again(layers, tmp_path, request_of, caplog):
    async with worker(layers, tmp_path) as trainer:
        await trainer.create()
        await trainer.submit("forward_backward", request_of(), 1)
        await trainer.outcome("run:1")
    caplog.set_level("INFO")
    async with worker(layers, tmp_path):
        assert "the journal has 1 runs; 0 operations were computed again and 0 wait" in caplog.text


async def test_runs_that_do_not_fit_memory_come_back_and_leave(layers, tmp_path, request_of):
    def executor(evicted):
        return Executor(
            layers, CheckpointStore(tmp_path / "store"), token_budget=128, evicted=evicted, run_memory_bytes=1
        )

    message, run_ids = request_of(lengths=(4,)), ("a", "b", "c")
    with closing(EvictedRuns(tmp_path)) as evicted:
        await leave(layers, tmp_path, executor(evicted), message, run_ids)
    with closing(EvictedRuns(tmp_path)) as evicted:
        async with worker(layers, tmp_path, executor=executor(evicted)) as trainer:
            assert sum(run.away is not None for run in trainer.executor.runs.values()) == 3
            for run_id in run_ids:
                await trainer.submit("optim_step", ADAM, 2, run_id=run_id)
                assert (await trainer.outcome(f"{run_id}:2")).optim_step.metrics["step"] == 1


async def leave(layers, tmp_path, executor, message, run_ids):
    async with worker(layers, tmp_path, executor=executor) as trainer:
        for run_id in run_ids:
            await trainer.create(run_id)
            await trainer.submit("forward_backward", message, 1, run_id=run_id)
            await trainer.outcome(f"{run_id}:1")


async def test_the_journal_stays_small(layers, tmp_path, request_of):
    """Bodies go with snapshots, outcomes with acknowledgements; what is acknowledged is kept for those who repeat."""
    limits = SnapshotLimits(operations=10, worth=0.0)
    async with worker(layers, tmp_path, snapshots=limits) as trainer:
        await trainer.create()
        sizes = []
        for seq in range(1, 121):
            await trainer.submit("forward_backward", request_of(lengths=(60, 60)), seq)
            await trainer.outcome(f"run:{seq}")
            if seq % 40 == 0:
                await trainer.poll(ack=[f"run:{number}" for number in range(1, seq + 1)], wait_s=0)
                kept = trainer.dispatcher._keeper._kept
                await until(lambda seq=seq, kept=kept: kept.get("run", [0])[-1] >= seq)
                await trainer.journal.until(trainer.journal.last_number)
                sizes.append(trainer.journal.num_bytes)
        one = request_of(lengths=(60, 60)).ByteSize()
        assert sizes[-1] < 20 * one + 120 * 1000, sizes  # operations since the older snapshot, and small outcomes


def test_one_trainer_and_one_model_a_journal(tmp_path):
    with locked(tmp_path) as folder:
        open_journal(folder, IDENTITY, {}, max_bytes=1 << 20).close()
        with pytest.raises(Conflict, match="in use by another trainer") as refused, locked(tmp_path):
            pass
        assert "--journal" in refused.value.hint
        with pytest.raises(Conflict, match="of model 'farstep/tiny', not 'other'"):
            open_journal(folder, {**IDENTITY, "model": "other"}, {}, max_bytes=1 << 20)
    with locked(tmp_path):
        pass


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


async def test_a_full_disk_is_refused_and_loses_nothing(layers, tmp_path, small_disk, request_of):
    """Others fill the disk up: what was accepted ends, what comes is refused, and it goes on when there is room."""
    journal = tmp_path / "journal"
    journal.symlink_to(small_disk)
    message = request_of(lengths=(60, 60))
    accepted = []
    async with worker(layers, tmp_path) as trainer:
        await trainer.create()
        for seq in range(1, 4):
            assert (await trainer.submit("forward_backward", message, seq)).status_code == 202
            accepted.append(seq)
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1 << 14)):
                pass
        refused = await trainer.submit("forward_backward", message, 4)
        assert (refused.status_code, error_of(refused).error_class) == (507, "StorageFullError")
        assert "KiB are free at" in error_of(refused).message
        for seq in accepted:
            assert (await trainer.outcome(f"run:{seq}")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
        assert (await trainer.create("another")).status_code == 507
        assert (await trainer.http.get("/v1/runs")).json()["runs"][0]["run_id"] == "run"
    async with worker(layers, tmp_path) as trainer:
        for seq in accepted:
            assert (await trainer.outcome(f"run:{seq}")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
        assert trainer.executor.runs["run"].random.draws == 3
        (small_disk / "filler").unlink()

        async def is_taken():
            return (await trainer.submit("forward_backward", message, 4)).status_code == 202

        for _ in range(200):
            if await is_taken():
                break
            await asyncio.sleep(0.05)
        assert (await trainer.outcome("run:4")).state == operations_pb2.OPERATION_STATE_SUCCEEDED
