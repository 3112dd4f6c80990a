"""How much of a machine LoRA training uses: model FLOPs utilisation against the machine's own measured matrix rate.

A model of random weights is made on the device (no download), and the worker's own executor trains on it: padded and
packed micro-batches in turn, on the same batches. The last line of output is one JSON object.

    python -m bench.train_gpu [--size 1b|3b|8b|tiny] [--device cuda] [--steps N] [--gradient-checkpointing]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from bench.flops import step_flops
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.embedded import model_dir
from farstep_model.head import find_head
from farstep_model.load import BaseModel
from farstep_model.packed import Layout
from farstep_model.spec import LoraSpec
from farstep_worker.compute import ComputeSettings, prepare_base
from farstep_worker.executor import Executor
from farstep_worker.runs import RunConfig
from farstep_worker.submission import AdamSettings, Example, Pass

# hidden, intermediate, layers, heads, key and value heads, vocabulary: the shapes of well-known models
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 384),
    "1b": (2_048, 5_632, 22, 32, 4, 32_000),
    "3b": (3_072, 8_192, 28, 24, 8, 128_256),
    "8b": (4_096, 14_336, 32, 32, 8, 128_256),
}
MAX_SEQ_LEN = 4_096
ADAM = AdamSettings(1e-4, 0.9, 0.95, 1e-8, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Plan:
    size: str
    device: str
    steps: int
    num_sequences: int
    longest: int
    rank: int
    token_budget: int | None
    gradient_checkpointing: bool


def main(argv: Sequence[str] | None = None) -> None:
    plan = read_plan(argv)
    device = torch.device(plan.device)
    base = random_base(plan.size, device)
    rate = matrix_rate(device, base.dtype)
    settings = ComputeSettings(
        batching="packed", token_budget=plan.token_budget, gradient_checkpointing=plan.gradient_checkpointing
    )
    ready = prepare_base(base, settings, num_threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            layout: Trainer(
                Executor(ready.layers, CheckpointStore(Path(folder)), token_budget=ready.token_budget, layout=layout),
                rank=plan.rank,
            )
            for layout in ("padded", "packed")
        }
        figures = measure(plan, trainers, rate)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    print(
        json.dumps(
            {
                **{key: float(f"{value:.4g}") for key, value in figures.items()},
                "matrix_tflops": float(f"{rate / 1e12:.4g}"),
                "parameters": parameters,
                "token_budget": ready.token_budget,
                "dtype": str(base.dtype),
                "device": name,
                "torch": torch.__version__,
                "settings": asdict(plan),
            }
        )
    )


def read_plan(argv: Sequence[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1b", choices=list(SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=10, help="of each layout; two more warm up")
    parser.add_argument("--num-sequences", type=int, default=64)
    parser.add_argument("--longest", type=int, default=2_048, help="lengths are even between an eighth of it and it")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--token-budget", type=int, help="otherwise what the worker chooses")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    return Plan(**vars(parser.parse_args(argv)))


@dataclass(frozen=True, slots=True)
class Step:
    seconds: float
    flops: float
    num_tokens: int
    peak_bytes: int
    loss: float


class Trainer:
    """One run on an executor of its own."""

    def __init__(self, executor: Executor, *, rank: int) -> None:
        self.executor = executor
        self.run = executor.create_run(RunConfig("run", LoraSpec(rank), 1, executor.base.max_seq_len))

    def step(self, lengths: Sequence[int], *, seed: int) -> Step:
        """Forward, backward and an optimizer step. It ends when its results are on the host."""
        call = draw_pass(lengths, seed=seed, vocab_size=self.executor.base.vocab_size)
        device = self.executor.base.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        passed = self.executor.execute("run", call).operation
        stepped = self.executor.execute("run", ADAM).operation
        seconds = time.perf_counter() - started
        for operation in (passed, stepped):
            if operation.HasField("error"):
                raise SystemExit(f"{operation.error.message} ({operation.error.hint})")
        return Step(
            seconds=seconds,
            flops=step_flops(self.run.adapter, lengths),
            num_tokens=sum(lengths),
            peak_bytes=peak_bytes(device),
            loss=passed.forward_backward.loss,
        )


def measure(plan: Plan, trainers: dict[Layout, Trainer], rate: float) -> dict[str, float]:
    """Steps of every layout in turn, on the same data; medians of all but the first two."""
    rng = np.random.default_rng(0)
    steps: dict[str, list[Step]] = {layout: [] for layout in trainers}
    for index in range(2 + plan.steps):
        lengths = rng.integers(max(1, plan.longest // 8), plan.longest + 1, plan.num_sequences).tolist()
        for layout, trainer in trainers.items():
            steps[layout].append(trainer.step(lengths, seed=index))
            print(layout, *(f"{name} {value:.4g}" for name, value in asdict(steps[layout][-1]).items()), flush=True)
    figures = {}
    for layout, taken in steps.items():
        counted = taken[2:]
        figures[f"{layout}_mfu"] = statistics.median(step.flops / step.seconds / rate for step in counted)
        figures[f"{layout}_tokens_per_s"] = statistics.median(step.num_tokens / step.seconds for step in counted)
        figures[f"{layout}_peak_gib"] = max(step.peak_bytes for step in counted) / 2**30
    pairs = zip(steps["padded"][2:], steps["packed"][2:], strict=True)
    figures["packed_over_padded"] = statistics.median(padded.seconds / packed.seconds for padded, packed in pairs)
    first, second = steps["padded"][0].loss, steps["packed"][0].loss
    figures["first_loss_difference"] = abs(first - second) / abs(first)
    return figures


def random_base(size: str, device: torch.device) -> BaseModel:
    """A Llama of this size with random weights, made where it is used, in the dtype that the worker would choose."""
    hidden, intermediate, layers, heads, kv_heads, vocab_size = SHAPES[size]
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=MAX_SEQ_LEN,
        tie_word_embeddings=False,
    )
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    return BaseModel(
        name=f"random-{size}",
        path="",
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(model_dir()),
        head=find_head(model),
        device=device,
        dtype=dtype,
        max_seq_len=MAX_SEQ_LEN,
        vocab_size=vocab_size,
        eos_token_ids=(2,),
    )


def draw_pass(lengths: Sequence[int], *, seed: int, vocab_size: int) -> Pass:
    rng = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        tokens = rng.integers(3, vocab_size, length + 1)
        examples.append(Example(tokens[:-1].astype(np.int32), {"target_tokens": tokens[1:]}))
    return Pass("cross_entropy", {}, tuple(examples), backward=True)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second in a large square product: the best of some, after a warm-up."""
    size, repeats = (8_192, 20) if device.type == "cuda" else (1_024, 3)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - started))
    return best


def peak_bytes(device: torch.device) -> int:
    """Allocated at most: on a GPU since the step began, on a CPU by the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
