"""Two processes that train as one: the same numbers, equal replicas, and an end that nobody has to wait for."""

import dataclasses
import functools
import os
import signal
import threading
import time
from contextlib import closing

import httpx
import numpy as np
import psutil
import pytest
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model import products
from farstep_model.spec import LoraSpec
from farstep_proto import paths
from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.compute import ComputeSettings
from farstep_worker.data_parallel import shares
from farstep_worker.evicted import EvictedRuns
from farstep_worker.executor import Executor
from farstep_worker.lead import GroupSettings, leading
from farstep_worker.rank_messages import read_call, to_command
from farstep_worker.ranks import RankDied, device_of
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Limits, LoadState, Pass, Publish, Reset, SaveState, Skip
from tests.support.processes import KEY, Server
from tests.unit.worker.wire import ADAM as ADAM_REQUEST
from tests.unit.worker.wire import Trainer, to_request

ADAM = AdamSettings(1e-2, 0.9, 0.95, 1e-8, 0.01, 1.0)
LIMITS = Limits(100_000, 4096, has_value_head=True)


# Without processes: how work is shared out, and how it is told


@pytest.mark.parametrize(
    ("loss_fn", "lengths"),
    [
        ("cross_entropy", (5,)),
        ("ppo", (5, 12, 3)),
        ("cross_entropy", (9,) * 11),
        ("dpo", (7, 8)),
        ("dpo", (60, 1, 1, 60, 30, 30, 7, 7)),
    ],
)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_are_all_of_the_data_in_whole_pairs(make_pass, loss_fn, lengths, world):
    call = make_pass(loss_fn, lengths=lengths)
    mine = shares(call, world)
    assert len(mine) == world
    assert sorted(index for share in mine for index in share.indices) == list(range(len(lengths)))
    for share in mine:
        assert list(share.call.examples) == [call.examples[index] for index in share.indices]
        if loss_fn == "dpo":
            assert all(index ^ 1 in share.indices for index in share.indices)


@pytest.mark.parametrize("device", ["cuda:1", "meta"])
def test_a_device_that_cannot_be_shared_out(device):
    with pytest.raises(InvalidInput, match="cannot share"):
        device_of(0, world=2, device=device)


def test_every_rank_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device_of(rank, world=2, device="auto")) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert device_of(1, world=3, device="cpu") == torch.device("cpu")
    with pytest.raises(InvalidInput, match="as many GPUs, 2 are here"):
        device_of(0, world=3, device="auto")


@pytest.mark.parametrize(("loss_fn", "expected"), [("cross_entropy", [250, 250]), ("dpo", [260, 240])])
def test_shares_are_balanced_by_tokens(make_pass, loss_fn, expected):
    lengths = (100, 100, 10, 10, 10, 10, 10, 10, 70, 70, 50, 50)
    loads = [share.call.num_tokens for share in shares(make_pass(loss_fn, lengths=lengths), 2)]
    assert loads == expected


@pytest.mark.parametrize("lengths", [(), (5, 1, 12)])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("what", [("ppo", {"clip_low_threshold": 0.7}), ("value", {"clip": 0.25}), ("custom", None)])
def test_a_pass_arrives_as_it_was_sent(make_pass, make_custom_pass, lengths, backward, what):
    loss_fn, config = what
    make = make_custom_pass if loss_fn == "custom" else functools.partial(make_pass, loss_fn, config=config)
    call = make(lengths=lengths, backward=backward)
    call = call if backward else dataclasses.replace(call, adapter="start")
    arrived = read_call(to_command("run", call).execute, LIMITS)
    # a further field has to be put into `rank_messages`, the case of no data included, and compared here
    names = [field.name for field in dataclasses.fields(Pass)]
    assert names == ["loss_fn", "config", "examples", "backward", "adapter", "custom"]
    for name in ("loss_fn", "config", "backward", "adapter", "custom"):
        assert getattr(arrived, name) == getattr(call, name)
    for there, here in zip(arrived.examples, call.examples, strict=True):
        np.testing.assert_array_equal(there.tokens, here.tokens)
        assert there.inputs.keys() == here.inputs.keys()
        for key in here.inputs:
            np.testing.assert_array_equal(there.inputs[key], here.inputs[key])
            assert there.inputs[key].dtype == here.inputs[key].dtype


@pytest.mark.parametrize(
    "call",
    [ADAM, Reset(7), LoadState(CheckpointPath("run", "weights", "x"), optimizer=True)],
    ids=lambda call: type(call).__name__,
)
def test_every_other_call_arrives_as_it_was_sent(call):
    assert read_call(to_command("run", call).execute, LIMITS) == call


# Rank 0 here, rank 1 a process


@pytest.mark.system
def test_replicas_that_differ_are_found_out(tmp_path, make_pass):
    lost = []
    with leading(settings(tmp_path), on_loss=lost.append) as leader:
        run = leader.create_run(RunConfig("run", LoraSpec(4), 1, 128))
        succeeded(leader.execute("run", make_pass()))
        succeeded(leader.execute("run", ADAM))
        with torch.no_grad():
            run.adapter.parameters()[1][0, 0] += 1e-7
        succeeded(leader.execute("run", make_pass()))
        error = leader.execute("run", ADAM).operation.error
        assert error.error_class == "RankDiedError"
        assert "rank 1 no longer holds what rank 0 holds" in error.message
        assert leader.execute("run", make_pass()).operation.error.message == error.message
    assert len(lost) == 1
    assert followers_of(os.getpid()) == []


@pytest.mark.system
def test_every_rank_is_told_how_to_compute(tmp_path, layers, make_pass):
    """Packed and with gradient checkpointing here, padded there."""
    alone = Executor(layers, CheckpointStore(tmp_path / "alone"), token_budget=128)
    with leading(settings(tmp_path, batching="packed", gradient_checkpointing=True), on_loss=print) as leader:
        runs = [executor.create_run(RunConfig("run", LoraSpec(4), 1, 128)) for executor in (leader, alone)]
        for loss_fn in ("ppo", "dpo"):
            call = valid(make_pass(loss_fn, lengths=(60, 2, 12, 90, 3, 33)))
            ours, theirs = (succeeded(executor.execute("run", call)) for executor in (leader, alone))
            assert_same_output(ours.forward_backward, theirs.forward_backward)
        assert_close(runs[0].gradients, runs[1].gradients)
        succeeded(leader.execute("run", ADAM))


class Pair:
    """Two ranks, and one executor alone that is told the same; `lost` is what was heard of lost ranks."""

    def __init__(self, leader, alone, lost):
        self.leader = leader
        self.alone = alone
        self.lost = lost

    def create(self, run_id, *, seed=3, **spec):
        config = RunConfig(run_id, LoraSpec(4, **spec), seed, self.leader.base.max_seq_len)
        self.alone.create_run(config)
        return self.leader.create_run(config), self.alone.runs[run_id]

    def both(self, run_id, call):
        return [succeeded(executor.execute(run_id, call)) for executor in (self.leader, self.alone)]


def settings(tmp_path, **compute):
    return GroupSettings(
        world=2, model="farstep/tiny", store=str(tmp_path / "store"), device="cpu",
        compute=ComputeSettings(token_budget=128, **compute), num_threads=1, log_level="WARNING",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(layers, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("pair")
    lost = []
    evicted = EvictedRuns(tmp_path / "store")
    room = dataclasses.replace(settings(tmp_path), run_memory_bytes=0)
    with closing(evicted), leading(room, evicted, on_loss=lost.append) as leader:  # one at a time in a process
        alone = Executor(layers, CheckpointStore(tmp_path / "store"), token_budget=128)
        yield Pair(leader, alone, lost)


def succeeded(outcome):
    assert outcome.operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED, outcome.operation.error
    return outcome.operation


def assert_close(ours, theirs, *, rtol=1e-5):
    """By the norm of each tensor: where a gradient is all but 0, Adam makes a step of its rounding."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= rtol * b.norm() + 1e-12


def assert_same_output(ours, theirs):
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name in theirs.metrics:
        assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-4, abs=1e-6), name
    assert len(ours.loss_fn_outputs) == len(theirs.loss_fn_outputs)
    for a, b in zip(ours.loss_fn_outputs, theirs.loss_fn_outputs, strict=True):
        (name,) = b.fields
        assert list(a.fields[name].shape) == list(b.fields[name].shape)
        values = [np.frombuffer(output.fields[name].data, dtype=np.float32) for output in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def valid(call):
    """Losses over sequences want a token of each that counts, which the weights that are drawn may lack."""
    if call.loss_fn in ("gspo", "dpo"):
        for example in call.examples:
            example.inputs["weights"][:] = 1
    return call


@pytest.mark.system
@pytest.mark.parametrize(
    ("loss_fn", "lengths"),
    [
        ("cross_entropy", (9, 9, 9, 9)),
        ("cross_entropy", (7,)),
        ("ppo", (5, 40, 3)),
        ("importance_sampling", (120, 1, 2, 33, 64, 5, 17)),
        ("gspo", (40, 3, 9)),
        ("dpo", (12, 9)),
        ("dpo", (40, 3, 5, 12, 9, 9)),
    ],
)
def test_two_processes_compute_what_one_does(pair, make_pass, loss_fn, lengths):
    run_id = f"{loss_fn}-{len(lengths)}"
    ours, theirs = pair.create(run_id)
    for step in range(3):
        for part in range(2):  # gradients add up over passes
            call = valid(make_pass(loss_fn, lengths=lengths, seed=10 * step + part))
            a, b = pair.both(run_id, call)
            assert_same_output(a.forward_backward, b.forward_backward)
        rtol = 1e-5 if step == 0 else 1e-3  # later the weights differ as well: Adam divides by small numbers
        assert_close(ours.gradients, theirs.gradients, rtol=rtol)
        a, b = pair.both(run_id, ADAM)
        assert a.optim_step.metrics["grad_norm"] == pytest.approx(b.optim_step.metrics["grad_norm"], rel=rtol)
    assert_close(ours.adapter.parameters(), theirs.adapter.parameters(), rtol=1e-3)
    for adapter in ("current", "start", "base"):
        call = valid(make_pass(loss_fn, lengths=lengths, backward=False))
        call = dataclasses.replace(call, adapter=adapter)
        a, b = pair.both(run_id, call)
        assert_same_output(a.forward_backward, b.forward_backward)


@pytest.mark.system
@pytest.mark.parametrize("lengths", [(7,), (40, 3, 5, 12)])
def test_two_processes_train_a_value_head_as_one_does(pair, make_pass, lengths):
    """In steps of the policy alone, of values alone and of both: what has no gradient has none on any rank."""
    run_id = f"critic-{len(lengths)}"
    ours, theirs = pair.create(run_id, value_head=True, target_modules=("q_proj", "lm_head"))
    for step, losses in enumerate((["ppo"], ["value"], ["value", "ppo"])):
        for loss_fn in losses:
            a, b = pair.both(run_id, make_pass(loss_fn, lengths=lengths, seed=step))
            assert_same_output(a.forward_backward, b.forward_backward)
        there = [[gradient is not None for gradient in run.gradients] for run in (ours, theirs)]
        assert there[0] == there[1]
        assert all(there[0]) == (len(losses) == 2)
        pair.both(run_id, ADAM)  # compares the replicas
    assert_close(ours.adapter.parameters(), theirs.adapter.parameters(), rtol=1e-3)
    for adapter in ("current", "start"):
        call = dataclasses.replace(make_pass("value", lengths=lengths, backward=False), adapter=adapter)
        a, b = pair.both(run_id, call)
        assert_same_output(a.forward_backward, b.forward_backward)


@pytest.mark.system
@pytest.mark.parametrize("bad", [2, 3])
def test_a_pass_that_fails_on_one_rank_leaves_every_rank_as_it_was(pair, make_pass, bad):
    run_id = f"fails-{bad}"
    ours, _ = pair.create(run_id, dropout=0.1)
    succeeded(pair.leader.execute(run_id, make_pass(seed=5)))
    before = [gradient.clone() for gradient in ours.gradients]
    random = ours.random
    call = make_pass("importance_sampling", lengths=(8, 8, 8, 8))
    assert [list(share.indices) for share in shares(call, 2)] == [[0, 2], [1, 3]]
    call.examples[bad].inputs["logprobs"][:] = -1e30
    call.examples[bad].inputs["advantages"][:] = 1
    error = pair.leader.execute(run_id, call).operation.error
    assert (error.error_class, error.field, error.status) == ("NonFiniteError", f"data[{bad}]", 422)
    assert all(torch.equal(a, b) for a, b in zip(before, ours.gradients, strict=True))
    assert ours.random == random
    succeeded(pair.leader.execute(run_id, make_pass(seed=6)))
    succeeded(pair.leader.execute(run_id, ADAM))  # compares the replicas


@pytest.mark.system
def test_memory_that_runs_out_on_one_rank(pair, make_pass, monkeypatch):
    """It splits its micro-batches by itself; what does not fit alone fails the pass on all."""
    ours, theirs = pair.create("memory")
    call = make_pass("ppo", lengths=(8,) * 16)
    expected = succeeded(pair.alone.execute("memory", call))
    found, failures = products.product, []

    def small(x_NI, *others):
        if len(x_NI) > limit:
            failures.append(len(x_NI))
            raise torch.OutOfMemoryError("no memory")
        return found(x_NI, *others)

    with monkeypatch.context() as patch:  # in this process, which is rank 0
        patch.setattr(products, "product", small)
        limit = 40
        assert_same_output(succeeded(pair.leader.execute("memory", call)).forward_backward, expected.forward_backward)
        assert failures == [64]
        assert_close(ours.gradients, theirs.gradients)
        limit = 7
        error = pair.leader.execute("memory", call).operation.error
    assert (error.error_class, error.field) == ("OutOfMemoryError", "data[0]")
    assert_close(ours.gradients, theirs.gradients)
    succeeded(pair.leader.execute("memory", ADAM))  # compares the replicas


@pytest.mark.system
def test_errors_that_every_rank_makes_are_answers(pair, make_pass):
    ours, _ = pair.create("errors")
    assert pair.leader.execute("errors", ADAM).operation.error.error_class == "NoGradientError"
    missing = LoadState(CheckpointPath("errors", "weights", "missing"), optimizer=True)
    assert pair.leader.execute("errors", missing).operation.error.error_class == "NotFoundError"
    succeeded(pair.leader.execute("errors", make_pass()))
    succeeded(pair.leader.execute("errors", ADAM))
    succeeded(pair.leader.execute("errors", Skip()))
    succeeded(pair.leader.execute("errors", Reset(2)))
    assert ours.adapter.spec.rank == 2
    succeeded(pair.leader.execute("errors", make_pass()))
    succeeded(pair.leader.execute("errors", ADAM))


@pytest.mark.system
def test_a_checkpoint_of_two_processes_goes_on_in_one_and_back(pair, make_pass):
    """Saved by two, loaded by one; saved by one, loaded by two: each goes on as the other does."""
    for source, target, name in ((pair.leader, pair.alone, "two"), (pair.alone, pair.leader, "one")):
        pair.create(f"saved-by-{name}", seed=3)
        pair.create(f"loaded-from-{name}", seed=4)
        for call in (make_pass(seed=1), ADAM, SaveState("half", {}, None, overwrite=False)):
            succeeded(source.execute(f"saved-by-{name}", call))
        path = CheckpointPath(f"saved-by-{name}", "weights", "half")
        succeeded(target.execute(f"loaded-from-{name}", LoadState(path, optimizer=True)))
        for call in (make_pass(seed=2), ADAM):
            succeeded(source.execute(f"saved-by-{name}", call))
            succeeded(target.execute(f"loaded-from-{name}", call))
        saved, loaded = source.runs[f"saved-by-{name}"], target.runs[f"loaded-from-{name}"]
        assert_close(loaded.adapter.parameters(), saved.adapter.parameters(), rtol=1e-3)
        assert loaded.step == saved.step == 2
        assert loaded.random == saved.random


@pytest.mark.system
def test_a_policy_is_published_once(pair, make_pass):
    pair.create("publishing")
    for call in (make_pass(), ADAM):
        succeeded(pair.leader.execute("publishing", call))
    outcome = pair.leader.execute("publishing", Publish("first", None))
    assert succeeded(outcome).save_weights.policy_version == outcome.policy.version == 1
    again = pair.leader.execute("publishing", Publish("first", None))
    assert again.operation.error.error_class == "ConflictError"


@pytest.mark.system
def test_dropout_is_repeatable_and_differs_by_rank(pair, make_pass):
    outputs = []
    for run_id in ("dropout-a", "dropout-b"):
        pair.create(run_id, dropout=0.5)
        for call in (make_pass(lengths=(20, 20, 20, 20)), ADAM, make_pass(lengths=(20, 20, 20, 20))):
            operation = succeeded(pair.leader.execute(run_id, call))
        outputs.append([output.fields["logprobs"].data for output in operation.forward_backward.loss_fn_outputs])
    assert outputs[0] == outputs[1]
    example = make_pass(lengths=(20,)).examples[0]
    twins = Pass("cross_entropy", {}, (example,) * 4, backward=True)
    ranks = [output.fields["logprobs"].data for output in
             succeeded(pair.leader.execute("dropout-a", twins)).forward_backward.loss_fn_outputs]  # fmt: skip
    assert ranks[0] != ranks[1]


@pytest.mark.system
def test_runs_leave_all_ranks_and_come_back_to_all(pair, make_pass):
    leader = pair.leader
    staying, moving = pair.create("staying", dropout=0.2)[0], pair.create("moving", dropout=0.2)[0]
    pair.create("deleted")
    for call in (make_pass(), ADAM, make_pass(seed=1), make_pass(seed=2), ADAM, Reset(2), make_pass(), ADAM):
        leader.make_room(lambda run_id: run_id == "staying")
        assert (staying.away is None, moving.away is None) == (True, False)
        succeeded(leader.execute("staying", call))
        succeeded(leader.execute("moving", call))  # ends with a comparison of the replicas
    leader.delete_run("deleted")
    succeeded(leader.execute("moving", make_pass()))
    assert moving.adapter.to_bytes() == staying.adapter.to_bytes()
    assert moving.optimizer.state_bytes() == staying.optimizer.state_bytes()


@pytest.mark.system
def test_an_idle_rank_that_dies_is_noticed_at_once_and_every_later_call_says_so(pair, make_pass):
    """The last test of the pair."""
    pair.create("orphan")
    (follower,) = followers_of(os.getpid())
    follower.kill()
    wait_until(lambda: pair.lost)
    epitaph = f"rank 1 (process {follower.pid}) ended by SIGKILL"
    assert pair.lost[0] == epitaph
    for call in (make_pass(), ADAM, make_pass(backward=False), Reset(2)):
        error = pair.leader.execute("orphan", call).operation.error
        assert (error.error_class, error.message) == ("RankDiedError", epitaph)
    with pytest.raises(RankDied):
        pair.leader.create_run(RunConfig("another", LoraSpec(4), 1, 128))


def wait_until(condition, *, within_s=5.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The whole trainer


def followers_of(pid):
    return [p for p in psutil.Process(pid).children() if "farstep_worker.follow" in p.cmdline()]


def end_of(server, processes, *, within_s):
    """The server's exit code, when all processes are gone in time and the port is free."""
    code = server.process.wait(timeout=within_s)
    gone, alive = psutil.wait_procs(processes, timeout=within_s)
    assert not alive, gone
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + paths.HEALTH)
    server.stop()
    return code


@pytest.fixture
def server(tmp_path):
    server = Server("farstep_worker", "--store", tmp_path / "store", "--nproc", "2").start()
    yield server
    server.stop() if server.process.returncode is None else None


def connect(server):
    headers = {"authorization": f"Bearer {KEY}"}
    return Trainer(httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30), None)


@pytest.fixture
def unjournalled(tmp_path):
    server = Server("farstep_worker", "--store", tmp_path / "store", "--nproc", "2", "--journal", "off").start()
    yield server
    server.stop() if server.process.returncode is None else None


@pytest.mark.system
async def test_what_a_group_lost_with_a_rank_the_next_one_does(server, make_pass):
    """The run comes back on both ranks, in the middle of its life; nobody hears of the loss."""
    calls = [("forward_backward", to_request(make_pass())), ("reset", pb.ResetRequest(lora_rank=2))]
    calls += [("forward_backward", to_request(make_pass(seed=seed))) for seed in (1, 2)] + [
        ("optim_step", ADAM_REQUEST)
    ]
    calls += [("forward_backward", to_request(make_pass(seed=3))), ("optim_step", ADAM_REQUEST)]
    trainer = connect(server)
    async with trainer.http:
        await trainer.create()
        for seq, (verb, message) in enumerate(calls[:5], start=1):
            await trainer.submit(verb, message, seq)
        assert (await trainer.outcome("run:5")).HasField("optim_step")
        (follower,) = followers_of(server.process.pid)
        follower.suspend()  # rank 0 will wait for it
        for seq in (6, 7):
            await trainer.submit(*calls[seq - 1], seq)
        follower.kill()
    assert end_of(server, [follower], within_s=20) == 1
    server.restart()
    trainer = connect(server)
    async with trainer.http:
        await trainer.create("twin")
        for seq, (verb, message) in enumerate(calls, start=1):
            await trainer.submit(verb, message, seq, run_id="twin")
        for seq in range(1, 8):
            mine, its = await trainer.outcome(f"run:{seq}"), await trainer.outcome(f"twin:{seq}")
            its.operation_id = mine.operation_id
            assert mine == its


@pytest.mark.system
async def test_a_rank_that_dies_while_it_computes_is_a_clear_error_and_the_end(unjournalled, make_pass):
    server = unjournalled
    trainer = connect(server)
    async with trainer.http:
        await trainer.create()
        accepted = await trainer.submit("forward_backward", to_request(make_pass()), 1)
        assert (await trainer.outcome("run:1")).HasField("forward_backward"), accepted.content
        (follower,) = followers_of(server.process.pid)
        follower.suspend()  # rank 0 will wait for it
        await trainer.submit("forward_backward", to_request(make_pass()), 2)
        await trainer.submit("optim_step", ADAM_REQUEST, 3)
        threading.Timer(0.5, follower.kill).start()
        started = time.monotonic()
        outcome = await trainer.outcome("run:2")
        assert outcome.error.error_class == "RankDiedError"
        assert f"rank 1 (process {follower.pid}) ended by SIGKILL" in outcome.error.message
        assert "checkpoint" in outcome.error.hint
    assert end_of(server, [follower], within_s=10) == 1
    assert time.monotonic() - started < 15
    assert "this trainer ends" in "".join(server.log)


@pytest.mark.system
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
async def test_no_rank_outlives_rank_0(server, sig):
    followers = followers_of(server.process.pid)
    assert len(followers) == 1
    os.kill(server.process.pid, sig)
    code = end_of(server, followers, within_s=10)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143}[sig]
    assert "Traceback" not in "".join(server.log)
    assert "this trainer ends" not in "".join(server.log)  # an orderly end is no loss
