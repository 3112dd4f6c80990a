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
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_worker.device import CPU_TOKEN_BUDGET
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import Example, Pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    flags = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = load_base_model(flags.model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        executor = Executor(LoraLayers.install(base), CheckpointStore(Path(folder)), token_budget=CPU_TOKEN_BUDGET)
        executor.create_run(RunConfig("run", LoraSpec(RANK), 1, base.max_seq_len))
        (sequence,) = draw_batch("tiny", seed=0, num_sequences=1, vocab_size=base.vocab_size)
        example = Example(sequence[:-1].astype(np.int32), {"target_tokens": sequence[1:]})
        call = Pass("cross_entropy", {}, (example,), backward=True)
        answer(ready=True)
        for line in sys.stdin:
            seconds = []
            for _ in range(json.loads(line)["repeats"]):
                started = time.perf_counter()
                executor.execute("run", call)
                seconds.append(time.perf_counter() - started)
            answer(median_s=statistics.median(seconds))


if __name__ == "__main__":
    main()
