"""Steps that two processes take alike. As a program: `python -m tests.unit.worker.resume STORE` goes on from step 5."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.names import CheckpointPath
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Example, LoadState, Pass

MIDDLE = CheckpointPath("run", "weights", "middle")


def execute(executor, call):
    operation = executor.execute("run", call).operation
    assert not operation.HasField("error"), operation.error


def train(executor, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        tokens = [rng.integers(3, 300, length).astype(np.int32) for length in (20, 7, 33)]
        examples = tuple(Example(t, {"target_tokens": np.roll(t, -1).astype(np.int64)}) for t in tokens)
        execute(executor, Pass("cross_entropy", {}, examples, backward=True))
        execute(executor, AdamSettings(5e-3, 0.9, 0.95, 1e-8, 0.01, 1.0))


def state_of(run):
    """What must be equal, in short."""
    adapter, optimizer = (
        hashlib.sha256(data).hexdigest() for data in (run.adapter.to_bytes(), run.optimizer.state_bytes())
    )
    return f"{adapter} {optimizer} {run.step} {run.random}"


def new_run(executor, *, seed):
    return executor.create_run(RunConfig("run", LoraSpec(4, dropout=0.25), seed, 128))


def main():
    torch.set_num_threads(1)
    store = CheckpointStore(Path(sys.argv[1]))
    executor = Executor(LoraLayers.install(load_base_model(device="cpu")), store, token_budget=128)
    run = new_run(executor, seed=99)
    execute(executor, LoadState(MIDDLE, optimizer=True))
    train(executor, range(5, 10))
    print(state_of(run))


if __name__ == "__main__":
    main()
