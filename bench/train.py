"""How fast a dp_worker trains, against a plain torch + peft loop on the same machine.

Both sides take turns, step by step, on the same batches, weights and threads, and must agree on every loss; figures
are ratios of medians. The last line of output is one JSON object.

    python -m bench.train [--model farstep/tiny|random-100m|FOLDER] [--threads N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import AutoConfig

from bench import remote
from bench.batches import Kind, draw_batch, num_tokens
from bench.batches import Sequence as Tokens
from bench.child import Child, resident_bytes
from bench.models import RANDOM_100M, model_folder
from bench.settings import RANK
from farstep import ServiceClient, TrainingClient
from farstep_model.embedded import MODEL_NAME

LOSS_TOLERANCE = 1e-3  # relative, after as many steps as are taken: both sides round differently
TINY_TURN = 20  # tiny operations of one side before it is the other's turn
SMALL_RUNS = 16
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each thing is done; `warm_up` steps before each measurement are not counted."""

    model: str
    threads: int
    num_sequences: int
    warm_up: int
    steps: int
    large_sequences: int
    large_repeats: int
    tiny_repeats: int
    tiny_warm_up: int
    tiny_operations: int
    small_steps: int


EMBEDDED = Plan(
    model=MODEL_NAME,
    threads=1,
    num_sequences=32,
    warm_up=3,
    steps=15,
    large_sequences=64,
    large_repeats=9,
    tiny_repeats=400,
    tiny_warm_up=6_000,  # more than a server keeps outcomes of
    tiny_operations=10_000,
    small_steps=60,
)
LARGER = replace(  # a hundred times the compute: fewer of everything, so that a run ends within ten minutes
    EMBEDDED,
    num_sequences=8,
    warm_up=1,
    steps=4,
    large_sequences=4,
    large_repeats=3,
    tiny_repeats=60,
    tiny_warm_up=200,
    tiny_operations=400,
    small_steps=10,
)


@dataclass(slots=True)
class Bench:
    """The processes under measurement. `seed` is counted up: no batch comes twice."""

    plan: Plan
    vocab_size: int
    worker: Child
    local: Child
    executor: Child
    clients: Sequence[TrainingClient]
    service: ServiceClient
    folder: Path
    small_runs: Sequence[TrainingClient]
    unfused_runs: Sequence[TrainingClient]
    seed: int = 0

    def compare(self, kind: Kind) -> dict[str, float]:
        """Remote and local steps in turn; tokens a second of one over those of the other."""
        remote_s, local_s = [], []
        tokens = 0
        for step in range(self.plan.warm_up + self.plan.steps):
            batch = self._next_batch(kind)
            there = remote.train_step(self.clients[:1], remote.to_data(batch))
            here = self.local.ask(kind=kind, seed=self.seed)
            if not math.isclose(there.loss_sums[0], here["loss_sum"], rel_tol=LOSS_TOLERANCE):
                raise SystemExit(f"{kind} step {step}: loss {there.loss_sums[0]} there, {here['loss_sum']} here")
            if step >= self.plan.warm_up:
                remote_s.append(there.seconds)
                local_s.append(here["seconds"])
                tokens += num_tokens(batch)
        return {
            f"remote_over_local_{kind}": statistics.median(local_s) / statistics.median(remote_s),
            f"{kind}_remote_s": statistics.median(remote_s),
            f"{kind}_local_s": statistics.median(local_s),
            f"{kind}_tokens_per_step": tokens / self.plan.steps,
        }

    def four_runs(self) -> dict[str, float]:
        """Steps of one run alone and of four runs at once, in turn."""
        one_s, four_s = [], []
        for step in range(self.plan.warm_up + self.plan.steps):
            data = remote.to_data(self._next_batch("equal"))
            alone, together = remote.train_step(self.clients[1:2], data), remote.train_step(self.clients[1:5], data)
            if step >= self.plan.warm_up:
                one_s.append(alone.seconds)
                four_s.append(together.seconds)
        one, four = statistics.median(one_s), statistics.median(four_s)
        return {"four_runs_over_one": len(self.clients[1:5]) * one / four, "one_run_s": one, "four_runs_s": four}

    def many_small_runs(self) -> dict[str, float]:
        """A small step of many runs at once, on a worker that fuses and on one that does not, in turn."""
        fused_s, alone_s = [], []
        for step in range(self.plan.warm_up + self.plan.small_steps):
            data = remote.to_data(self._next_batch("small"))
            fused, alone = (remote.train_step(clients, data) for clients in (self.small_runs, self.unfused_runs))
            if fused.loss_sums != alone.loss_sums:
                raise SystemExit(f"small step {step}: losses {fused.loss_sums} fused, {alone.loss_sums} alone")
            if step >= self.plan.warm_up:
                fused_s.append(fused.seconds)
                alone_s.append(alone.seconds)
        fused, alone = statistics.median(fused_s), statistics.median(alone_s)
        return {"small_runs_fused_over_not": alone / fused, "small_runs_fused_s": fused, "small_runs_alone_s": alone}

    def creation(self) -> dict[str, float]:
        """A run is created while the worker is busy with a large step of another."""
        data = remote.to_data(self._next_batch("equal"))
        seconds = []
        for _ in range(self.plan.steps):
            future = self.clients[0].forward_backward(data)
            started = time.perf_counter()
            created = self.service.create_lora_training_client(str(self.folder), rank=RANK)
            seconds.append(time.perf_counter() - started)
            future.result()
            self.service.delete_run(created.run_id)
            created.close()
        return {"create_run_while_busy_ms": 1e3 * statistics.median(seconds)}

    def large_operation(self) -> dict[str, float]:
        """Seconds from submission to outcome of a large pass, over those of its compute alone, in turn."""
        remote_s, compute_s = [], []
        for turn in range(1 + self.plan.large_repeats):
            batch = self._next_batch("large")
            (there,) = remote.latencies(self.clients[-1], remote.to_data(batch), repeats=1)
            here = self._compute_s("large", repeats=1)
            if turn:
                remote_s.append(there)
                compute_s.append(here)
        return {
            "large_op_overhead_ratio": statistics.median(remote_s) / statistics.median(compute_s),
            "large_op_latency_s": statistics.median(remote_s),
            "large_op_compute_s": statistics.median(compute_s),
        }

    def tiny_latency(self) -> dict[str, float]:
        """Milliseconds from submission to outcome of a tiny pass, beyond those of its compute alone, in turn."""
        data = remote.to_data(self._next_batch("tiny"))
        latencies, computes = [], []
        for turn in range(1 + self.plan.tiny_repeats // TINY_TURN):
            found = remote.latencies(self.clients[-1], data, repeats=TINY_TURN)
            compute = self._compute_s("tiny", repeats=TINY_TURN)
            if turn:
                latencies.append(statistics.median(found))
                computes.append(compute)
        overhead = statistics.median(there - here for there, here in zip(latencies, computes, strict=True))
        return {
            "tiny_op_overhead_ms": 1e3 * overhead,
            "tiny_op_latency_ms": 1e3 * statistics.median(latencies),
            "tiny_op_compute_ms": 1e3 * statistics.median(computes),
        }

    def memory(self) -> dict[str, float]:
        """What tiny operations leave in the worker's memory and in this process, once what is kept is full."""
        data, num_operations = remote.to_data(self._next_batch("tiny")), self.plan.tiny_operations
        remote.many_tiny_steps(self.clients[-1], data, num_operations=self.plan.tiny_warm_up)
        before = self.worker.resident_bytes, resident_bytes(os.getpid())
        remote.many_tiny_steps(self.clients[-1], data, num_operations=num_operations)
        after = self.worker.resident_bytes, resident_bytes(os.getpid())
        growth, client_growth = (late - early for early, late in zip(before, after, strict=True))
        return {
            "rss_growth_mib_10k_ops": growth / MIB * (10_000 / num_operations),
            "client_rss_growth_mib_10k_ops": client_growth / MIB * (10_000 / num_operations),
            "rss_mib": before[0] / MIB,
        }

    def _compute_s(self, kind: Kind, *, repeats: int) -> float:
        """Of the last batch, by an executor alone."""
        answer = self.executor.ask(kind=kind, seed=self.seed, num_sequences=self._num_sequences(kind), repeats=repeats)
        return float(answer["median_s"])

    def _num_sequences(self, kind: Kind) -> int:
        return self.plan.large_sequences if kind == "large" else self.plan.num_sequences

    def _next_batch(self, kind: Kind) -> list[Tokens]:
        self.seed += 1
        return draw_batch(kind, seed=self.seed, num_sequences=self._num_sequences(kind), vocab_size=self.vocab_size)


def main() -> None:
    plan = read_plan()
    with ExitStack() as stack:
        bench = start(plan, stack)
        figures: dict[str, float] = {}
        for measure in (
            bench.memory,  # first: what large batches leave in the allocator would hide a leak
            bench.tiny_latency,
            bench.large_operation,
            lambda: bench.compare("equal"),
            lambda: bench.compare("mixed"),
            bench.four_runs,
            bench.many_small_runs,
            bench.creation,
        ):
            found = measure()
            print(*(f"{name} {value:.4g}" for name, value in found.items()), sep="  ", flush=True)
            figures |= found
    print(json.dumps({**{name: round(value, 4) for name, value in figures.items()}, "settings": asdict(plan)}))


def read_plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL_NAME, help=f"the embedded model, {RANDOM_100M}, or a folder")
    parser.add_argument("--threads", type=int, default=1, help="of each side's torch")
    parser.add_argument("--quick", action="store_true", help="few steps: tells that it works, not how fast it is")
    flags = parser.parse_args()
    plan = EMBEDDED if flags.model == MODEL_NAME else LARGER
    if flags.quick:
        tiny_operations = max(100, plan.tiny_operations // 10)
        plan = replace(
            plan,
            warm_up=1,
            steps=2,
            large_repeats=2,
            tiny_repeats=40,
            tiny_warm_up=100,
            tiny_operations=tiny_operations,
            small_steps=3,
        )
    return replace(plan, model=flags.model, threads=flags.threads)


def start(plan: Plan, stack: ExitStack) -> Bench:
    """Starts every process; the local loop begins with the adapter that the first run begins with."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = model_folder(plan.model, scratch=scratch)
    store = scratch / "store"

    def child(module: str, *arguments: str | Path) -> Child:
        log = scratch / f"{module}.log"
        return stack.enter_context(Child(module, *arguments, num_threads=plan.threads, log=log))

    def service_of(worker: Child) -> ServiceClient:
        url = worker.facts["url"]
        return stack.enter_context(ServiceClient.local(trainer_url=url, sampler_url=url))

    def small_runs(service: ServiceClient) -> list[TrainingClient]:
        seeds = range(SMALL_RUNS)
        return [service.create_lora_training_client(str(folder), rank=RANK, seed=seed) for seed in seeds]

    flags = ("--model", folder, "--device", "cpu", "--exit-with-parent")
    worker = child("farstep_worker", *flags, "--store", store)
    unfused = child("farstep_worker", *flags, "--store", scratch / "unfused", "--fuse-runs", "off")
    service = service_of(worker)
    clients = [service.create_lora_training_client(str(folder), rank=RANK, seed=seed) for seed in range(5)]
    clients[0].save_state("start").result()
    (adapter,) = store.rglob("adapter_config.json")
    return Bench(
        plan=plan,
        vocab_size=AutoConfig.from_pretrained(folder).vocab_size,
        worker=worker,
        local=child("bench.local_loop", folder, adapter.parent, "--num-sequences", str(plan.num_sequences)),
        executor=child("bench.executor_loop", folder),
        clients=clients,
        service=service,
        folder=folder,
        small_runs=small_runs(service),
        unfused_runs=small_runs(service_of(unfused)),
    )


if __name__ == "__main__":
    main()
