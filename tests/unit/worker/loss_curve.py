"""Trains a fresh executor for some steps and prints what came of it, to the last bit."""

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Example, Pass

NUM_STEPS = 3
ADAM = AdamSettings(5e-3, 0.9, 0.95, 1e-8, 0.0, 1.0)


def loss_curve(*, seed):
    """Losses of every step in hexadecimal, and a digest of the adapter in the end.

    Long and short sequences under the worker's own token budget, so that every way of multiplying is met; dropout, so
    that random numbers are.
    """
    layers = LoraLayers.install(load_base_model(device="cpu"))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        executor = Executor(layers, CheckpointStore(Path(folder)), token_budget=1024)
        run = executor.create_run(RunConfig("run", LoraSpec(16, dropout=0.1), seed, layers.base.max_seq_len))
        other = executor.create_run(RunConfig("still", LoraSpec(16), seed, layers.base.max_seq_len))
        losses = []
        for _ in range(NUM_STEPS):
            tokens = [rng.integers(3, 100, length + 1) for length in (256, 256, 90, 17, 1)]
            examples = [Example(t[:-1].astype(np.int32), {"target_tokens": t[1:].astype(np.int64)}) for t in tokens]
            for run_id in ("run", "still"):
                passed = executor.execute(run_id, Pass("cross_entropy", {}, tuple(examples), True)).operation
                stepped = executor.execute(run_id, ADAM).operation
                assert passed.HasField("forward_backward"), passed
                losses.append(passed.forward_backward.metrics["loss:sum"])
                losses.append(stepped.optim_step.metrics["grad_norm"])
    digest = hashlib.sha256(run.adapter.to_bytes() + other.adapter.to_bytes()).hexdigest()
    return [loss.hex() for loss in losses] + [digest]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(loss_curve(seed=int(sys.argv[1]))))
