"""The compute of an operation without a server: the worker's own executor, called in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.batches import draw_batch
from bench.child import answer
from bench.settings import RANK
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.spec import LoraSpec
from farstep_worker.compute import ComputeSettings, prepare
from farstep_worker.executor import Executor
from farstep_worker.memory import settle_memory
from farstep_worker.runs import RunConfig
from farstep_worker.submission import Example, Pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    flags = parser.parse_args()
    settle_memory()
    num_threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(num_threads)
    ready = prepare(flags.model, ComputeSettings(), device="cpu", num_threads=num_threads)
    base = ready.layers.base
    with tempfile.TemporaryDirectory() as folder:
        executor = Executor(ready.layers, CheckpointStore(Path(folder)), token_budget=ready.token_budget)
        executor.create_run(RunConfig("run", LoraSpec(RANK), 1, base.max_seq_len))
        answer(ready=True)
        for line in sys.stdin:
            question = json.loads(line)
            repeats = question.pop("repeats")
            batch = draw_batch(**question, vocab_size=base.vocab_size)
            data = (Example(tokens[:-1].astype(np.int32), {"target_tokens": tokens[1:]}) for tokens in batch)
            call = Pass("cross_entropy", {}, tuple(data), backward=True)
            answer(median_s=statistics.median(_seconds(executor, call) for _ in range(repeats)))


def _seconds(executor: Executor, call: Pass) -> float:
    started = time.perf_counter()
    executor.execute("run", call)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
