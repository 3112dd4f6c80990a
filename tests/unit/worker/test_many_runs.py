"""Nothing of one run shows in another, whatever happens to the others: fused, evicted, reset, deleted, failed.

The oracle has an executor for each run, where it is alone and never leaves.
"""

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.spec import LoraSpec
from farstep_proto.names import CheckpointPath
from farstep_worker.evicted import EvictedRuns
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Example, LoadState, Pass, Publish, Reset, SaveState
from tests.unit.worker.wire import ADAM as ADAM_REQUEST
from tests.unit.worker.wire import serving, to_request

ADAM = AdamSettings(1e-2, 0.9, 0.95, 1e-8, 0.0, 0.0)
MOST = 4
LENGTHS = [(6, 4), (6, 6, 2), (3, 6), (5, 6)]
ROOM = 300_000  # bytes, for one run or two

which = st.integers(0, MOST - 1)


def make_call(layers, lengths, *, seed, backward=True, spoiled=False):
    rng = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        tokens = rng.integers(3, layers.base.vocab_size, length).astype(np.int32)
        inputs = {"target_tokens": np.roll(tokens, -1).astype(np.int64)}
        inputs["logprobs"] = np.full(length, -1e30 if spoiled else -3, dtype=np.float32)
        inputs["advantages"] = np.ones(length, dtype=np.float32)
        examples.append(Example(tokens, inputs))
    return Pass("importance_sampling", {}, tuple(examples), backward)


class ManyRuns(RuleBasedStateMachine):
    layers = None  # set by the test
    happened: ClassVar = Counter()

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.evicted = EvictedRuns(self.folder)
        self.shared = Executor(
            self.layers,
            CheckpointStore(self.folder),
            token_budget=64,
            evicted=self.evicted,
            run_memory_bytes=ROOM,
            fuse_runs=True,
        )
        self.alone = {}
        self.names = {}
        self.num_created = 0

    @initialize()
    def create_some(self):
        for index in range(3):
            self.create(index, 0)

    @rule(index=which, seed=st.integers(0, 3))
    def create(self, index, seed):
        if index in self.names:
            return
        rank, dropout = [(2, 0.0), (4, 0.0), (4, 0.2), (3, 0.0)][index]
        self.num_created += 1
        name = self.names[index] = f"run-{self.num_created}"
        config = RunConfig(name, LoraSpec(rank, dropout=dropout), seed, 128)
        self.shared.create_run(config)
        self.alone[name] = Executor(self.layers, CheckpointStore(self.folder / "alone" / name), token_budget=64)
        self.alone[name].create_run(config)

    @precondition(lambda self: len(self.names) > 1)
    @rule(backward=st.booleans(), seed=st.integers(0, 3), spoiled=st.sampled_from([None, None, *range(MOST)]))
    def compute_together(self, backward, seed, spoiled):
        """The same shapes again and again, so that they are fused."""
        calls = [
            (name, make_call(self.layers, LENGTHS[i], seed=seed + i, backward=backward, spoiled=spoiled == i))
            for i, name in sorted(self.names.items())
        ]
        outcomes = self.shared.execute_together(calls)
        fused = [outcome for outcome in outcomes if outcome.is_fused]
        self.happened["fused"] += len(fused)
        self.happened["failed beside others"] += sum(outcome.operation.HasField("error") for outcome in fused)
        self.happened["restored"] += sum("restore" in outcome.phases_s for outcome in outcomes)
        for (name, call), outcome in zip(calls, outcomes, strict=True):
            self._check(outcome, self.alone[name].execute(name, call))

    @rule(index=which, call=st.sampled_from([ADAM, ADAM, Publish("", None), Reset(3)]))
    def execute(self, index, call):
        self._both(index, call)

    @rule(index=which)
    def save_and_load(self, index):
        self._both(index, SaveState("s", {}, None, overwrite=True))
        if index in self.names:
            self._both(index, LoadState(CheckpointPath(self.names[index], "weights", "s"), optimizer=True))

    @rule(busy=st.sets(which), on_disk=st.booleans())
    def make_room(self, busy, on_disk):
        names = {self.names.get(index) for index in busy}
        self.shared.make_room(lambda run_id: run_id in names)
        if on_disk:
            self.evicted.settle()

    @rule(index=which, really=st.sampled_from([False, False, True]))
    def delete(self, index, really):
        if really and index in self.names:
            name = self.names.pop(index)
            self.shared.delete_run(name)
            del self.alone[name]

    @invariant()
    def every_run_is_what_it_would_be_alone(self):
        assert self.shared.runs.keys() == set(self.names.values())
        for name, executor in self.alone.items():
            mine, other = self.shared.runs[name], executor.runs[name]
            assert (mine.step, mine.random, mine.policy_version) == (other.step, other.random, other.policy_version)
            if mine.away is None:
                theirs = other.tensors()
                assert mine.tensors().keys() == theirs.keys()
                assert all(tensor.equal(theirs[key]) for key, tensor in mine.tensors().items())

    def teardown(self):
        for index in list(self.names):  # all come back
            self._both(index, make_call(self.layers, (6,), seed=9, backward=False))
        self.every_run_is_what_it_would_be_alone()
        self.evicted.close()
        shutil.rmtree(self.folder)

    def _both(self, index, call):
        if index in self.names:
            name = self.names[index]
            self._check(self.shared.execute(name, call), self.alone[name].execute(name, call))

    @staticmethod
    def _check(one, other):
        assert one.operation == other.operation
        assert (one.policy is None) == (other.policy is None)
        if one.policy is not None:
            assert (one.policy.sha256, one.policy.version) == (other.policy.sha256, other.policy.version)


def test_every_run_is_what_it_would_be_alone(layers):
    ManyRuns.layers = layers
    run_state_machine_as_test(
        ManyRuns,
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
    assert {what for what, times in ManyRuns.happened.items() if times > 3} == {
        "fused",
        "failed beside others",
        "restored",
    }, ManyRuns.happened


async def test_many_clients_train_as_if_each_were_alone(layers, tmp_path):
    """Over the wire, with all that waits at once: fused, and evicted in between."""
    names = [f"run-{i}" for i in range(6)]
    calls = {name: [make_call(layers, (6, 4), seed=10 * i + n) for n in range(6)] for i, name in enumerate(names)}
    evicted = EvictedRuns(tmp_path)
    executor = Executor(
        layers,
        CheckpointStore(tmp_path),
        token_budget=64,
        evicted=evicted,
        run_memory_bytes=ROOM,
        fuse_runs=True,
    )
    async with serving(executor) as trainer:
        for name in names:
            await trainer.create(name)
        for n in range(6):
            for name in names:
                await trainer.submit("forward_backward", to_request(calls[name][n]), 2 * n + 1, run_id=name)
                await trainer.submit("optim_step", ADAM_REQUEST, 2 * n + 2, run_id=name)
        outcomes = {name: [await trainer.outcome(f"{name}:{seq}") for seq in range(1, 13)] for name in names}
        traces = [trace for name in names for trace in trainer.dispatcher.telemetry.last(name, 100)]
        metrics = (await trainer.http.get("/metrics")).text
    evicted.close()
    fused = [trace for trace in traces if trace.fused_with]
    assert fused
    for trace in fused:
        assert trace.operation_id not in trace.fused_with
        assert trace.phases_s.keys() >= {"forward", "backward"}
    assert "farstep_evicted_runs" in metrics
    for i, name in enumerate(names):
        alone = Executor(layers, CheckpointStore(tmp_path / name), token_budget=64)
        async with serving(alone) as trainer:
            await trainer.create(name)
            for n, call in enumerate(calls[name]):
                await trainer.submit("forward_backward", to_request(call), 2 * n + 1, run_id=name)
                await trainer.submit("optim_step", ADAM_REQUEST, 2 * n + 2, run_id=name)
            assert [await trainer.outcome(f"{name}:{seq}") for seq in range(1, 13)] == outcomes[name], i
