"""How fast a sampler samples, against batched `transformers.generate` (peft for LoRA) on the same machine.

A real worker and a real sampler on loopback, driven by the SDK, and `generate` in a process of its own take turns on
the same prompts with the same number of threads; figures are ratios of medians. Then: how soon a published policy
answers, and what swaps under full load cost. The last line of output is one JSON object.

    python -m bench.sample [--model farstep/tiny|random-30m|random-100m|FOLDER] [--threads N] [--seconds N] [--quick]
        [--vllm-python PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from bench import remote, swaps, vllm_side
from bench.batches import draw_batch
from bench.child import Child
from bench.models import RANDOM_30M, model_folder
from bench.settings import RANK
from farstep import ModelInput, SamplingClient, SamplingParams, ServiceClient, TrainingClient


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each thing is done; the first turn of each is not counted."""

    model: str
    threads: int
    turns: int
    publications: int
    seconds: float
    num_prompts: int = 16
    num_samples: int = 4
    num_tokens: int = 64
    vllm_python: str | None = None

    @property
    def total_tokens(self) -> int:
        return self.num_prompts * self.num_samples * self.num_tokens


Other = Callable[[list[list[int]]], float]  # seconds for some prompts


@dataclass(slots=True)
class Bench:
    """The processes under measurement. `seed` is counted up: no prompt comes twice, so no prefix is known."""

    plan: Plan
    vocab_size: int
    trainer: TrainingClient
    clients: dict[str, SamplingClient]
    generate: Child
    open_load: Child
    vllm: Child | None
    seed: int = 0

    def batched(self, kind: str) -> dict[str, float]:
        """16 prompts × 4 samples × 64 tokens."""
        ours, theirs = self._in_turn(kind, self._generate(kind, self.plan.num_samples))
        return {
            f"over_batched_generate_{kind}": theirs / ours,
            f"{kind}_tokens_per_s": self.plan.total_tokens / ours,
            f"{kind}_generate_tokens_per_s": self.plan.total_tokens / theirs,
        }

    def over_vllm(self) -> dict[str, float | None]:
        """The same with LoRA, in turn with vLLM, which is called in its own process without HTTP."""
        if self.vllm is None:
            return {"over_vllm_lora": None}
        vllm, shape = self.vllm, {"num_samples": self.plan.num_samples, "max_tokens": self.plan.num_tokens}
        ours, theirs = self._in_turn(
            "lora", lambda prompts: vllm_side.sample(vllm, prompts, **shape, lora=True), warm_up=vllm_side.WARMUPS
        )
        return {"over_vllm_lora": theirs / ours, "vllm_lora_tokens_per_s": self.plan.total_tokens / theirs}

    def single_stream(self) -> dict[str, float]:
        ours, theirs = self._in_turn("base", self._generate("base", 1), num_prompts=1, num_samples=1)
        return {
            "single_stream_over_generate": theirs / ours,
            "single_stream_tokens_per_s": self.plan.num_tokens / ours,
        }

    def open(self) -> dict[str, float]:
        """An open load of which `generate` can do about half; both get the same arrivals."""
        rng = {"seed": self._next_seed(), "rate": 1.0, "seconds": 4.0}
        rate = self._generate_rate(rng)
        found: dict[str, float] = {"open_requests_per_s": rate}
        for kind in ("engine", "generate"):
            answer = self.open_load.ask(kind=kind, seed=rng["seed"], rate=rate, seconds=max(5.0, 20 / rate))
            found |= {f"open_{kind}_{name}": value for name, value in answer.items()}
        ratio = found["open_generate_whole_ms_p95"] / found["open_engine_whole_ms_p95"]
        return {"open_whole_p95_generate_over_ours": ratio} | found

    def publish(self) -> dict[str, float]:
        """From the call that publishes to the first token of that version, nothing else being asked of either."""
        data = remote.to_data(draw_batch("tiny", seed=0, num_sequences=1, vocab_size=self.vocab_size))
        one = SamplingParams(max_tokens=1, seed=0)
        seconds = []
        for _ in range(self.plan.publications):
            remote.train_step([self.trainer], data)
            started = time.perf_counter()
            client = self.trainer.save_weights_and_get_sampling_client()
            result = client.sample(ModelInput.from_ints([5, 6, 7]), 1, one).result()
            seconds.append(time.perf_counter() - started)
            if result.policy_version != self.trainer.policy_version:
                raise SystemExit(f"version {result.policy_version} answered for {self.trainer.policy_version}")
            client.close()
        return {
            "publish_to_sampled_ms": 1e3 * statistics.median(seconds),
            "publish_to_sampled_worst_ms": 1e3 * max(seconds),
        }

    def swap(self) -> dict[str, float]:
        data = remote.to_data(draw_batch("tiny", seed=0, num_sequences=1, vocab_size=self.vocab_size))
        step: Callable[[], object] = lambda: remote.train_step([self.trainer], data)  # noqa: E731
        return swaps.measure(self.trainer, step, seconds=self.plan.seconds)

    def _generate(self, kind: str, num_samples: int) -> Other:
        question = {"kind": kind, "num_samples": num_samples, "max_tokens": self.plan.num_tokens}
        return lambda prompts: float(self.generate.ask(**question, prompts=prompts)["seconds"])

    def _in_turn(
        self,
        kind: str,
        other: Other,
        *,
        num_prompts: int | None = None,
        num_samples: int | None = None,
        warm_up: int = 1,
    ) -> tuple[float, float]:
        """Median seconds of the sampler and of the other side, on the same prompts."""
        num_prompts, num_samples = num_prompts or self.plan.num_prompts, num_samples or self.plan.num_samples
        params = SamplingParams(max_tokens=self.plan.num_tokens, ignore_eos=True)
        here, there = [], []
        for _ in range(warm_up + self.plan.turns):
            rng = np.random.default_rng(self._next_seed())
            prompts = [rng.integers(3, self.vocab_size, n).tolist() for n in rng.integers(16, 49, num_prompts)]
            started = time.perf_counter()
            futures = [
                self.clients[kind].sample(ModelInput.from_ints(prompt), num_samples, params) for prompt in prompts
            ]
            sequences = [sequence for future in futures for sequence in future.result().sequences]
            here.append(time.perf_counter() - started)
            if {len(sequence.tokens) for sequence in sequences} != {self.plan.num_tokens}:
                raise SystemExit("a sequence ended early")
            there.append(other(prompts))
        return statistics.median(here[warm_up:]), statistics.median(there[warm_up:])

    def _generate_rate(self, trial: dict[str, float]) -> float:
        """Half the requests a second that a server around `generate` gets done when all arrive at once."""
        rush = self.open_load.ask(kind="generate", **(trial | {"rate": 16.0, "seconds": 2.0}))
        mean_tokens = 43  # of an answer, by the law that lengths are drawn from
        return max(0.5, 0.5 * rush["tokens_per_s"] / mean_tokens)

    def _next_seed(self) -> int:
        self.seed += 1
        return self.seed


def main() -> None:
    plan = read_plan()
    with ExitStack() as stack:
        bench = start(plan, stack)
        figures: dict[str, float | None] = {}
        for measure in (
            lambda: bench.batched("base"),
            lambda: bench.batched("lora"),
            bench.over_vllm,
            bench.single_stream,
            bench.open,
            bench.publish,
            bench.swap,
        ):
            found: Mapping[str, float | None] = measure()
            print(*(f"{name} {value}" for name, value in found.items()), sep="  ", flush=True)
            figures |= found
    rounded = {name: None if value is None else round(value, 4) for name, value in figures.items()}
    print(json.dumps({**rounded, "settings": asdict(plan)}))


def read_plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="farstep/tiny", help=f"the embedded model, {RANDOM_30M}, or a folder")
    parser.add_argument("--threads", type=int, default=1, help="of each side's torch")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long policies are swapped under load")
    parser.add_argument("--quick", action="store_true", help="few turns: tells that it works, not how fast it is")
    parser.add_argument("--vllm-python", help="of an environment with vLLM, for over_vllm_lora")
    flags = parser.parse_args()
    turns, publications = (2, 5) if flags.quick else (7, 25)
    return Plan(
        model=flags.model,
        threads=flags.threads,
        turns=turns,
        publications=publications,
        seconds=min(flags.seconds, 5.0) if flags.quick else flags.seconds,
        vllm_python=flags.vllm_python,
    )


def start(plan: Plan, stack: ExitStack) -> Bench:
    """Starts every process; `generate` gets the adapter that the sampler serves."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = model_folder(plan.model, scratch=scratch)
    store = scratch / "store"

    def child(module: str, *arguments: str | Path) -> Child:
        return stack.enter_context(Child(module, *arguments, num_threads=plan.threads, log=scratch / f"{module}.log"))

    common = ("--model", folder, "--store", store, "--device", "cpu", "--exit-with-parent")
    worker = child("farstep_worker", *common)
    sampler = child("farstep_sampler", *common, "--feed", worker.facts["feed"])
    urls = {"trainer_url": worker.facts["url"], "sampler_url": sampler.facts["url"]}
    service = stack.enter_context(ServiceClient.local(**urls))
    vocab_size = AutoConfig.from_pretrained(folder).vocab_size
    trainer = service.create_lora_training_client(str(folder), rank=RANK, seed=0)
    data = remote.to_data(draw_batch("equal", seed=0, num_sequences=4, vocab_size=vocab_size))
    remote.train_step([trainer], data)
    lora = trainer.save_weights_and_get_sampling_client("bench")
    adapter = next(file.parent for file in store.rglob("adapter_config.json") if file.parent.name == "bench")
    vllm = None
    if plan.vllm_python is not None:
        log = scratch / "vllm.log"
        settings = {"model": folder, "adapter": adapter, "num_threads": plan.threads, "log": log}
        vllm = stack.enter_context(vllm_side.start(plan.vllm_python, **settings))
    return Bench(
        plan=plan,
        vocab_size=vocab_size,
        trainer=trainer,
        clients={"lora": lora, "base": service.create_sampling_client(str(folder))},
        generate=child("bench.generate_loop", folder, adapter),
        open_load=child("bench.open_load", folder),
        vllm=vllm,
    )


if __name__ == "__main__":
    main()
