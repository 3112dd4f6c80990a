"""An open load on one process: requests arrive when they do, of mixed lengths, whether or not others are finished.

The engine and a server that batches `transformers.generate` get the same arrivals, one after the other. That server
does what can be done with `generate`: it takes all that waits, up to a batch, and answers when the longest is done;
a request's first token and its last one come together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from bench.child import answer
from bench.generate_loop import generate, left_padded
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.request import NO_TOP_K, SampleJob

MOST_AT_ONCE = 64


@dataclass(slots=True)
class Request:
    """`arrives_s` after the start; then when its tokens came."""

    arrives_s: float
    prompt: list[int]
    num_tokens: int
    token_times: list[float] = field(default_factory=list)


def arrivals(*, seed: int, rate: float, seconds: float) -> list[Request]:
    """Poisson arrivals; prompts of 16 to 512 tokens and answers of 8 to 128, both mostly short."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, max(1, int(rate * seconds))))

    def skewed(least: int, most: int) -> int:
        return int(least * (most / least) ** rng.random())

    return [Request(float(t), rng.integers(3, 380, skewed(16, 512)).tolist(), skewed(8, 128)) for t in times]


def job_of(request: Request, seed: int) -> SampleJob:
    return SampleJob(
        prompt=np.array(request.prompt, dtype=np.int32), num_samples=1, max_tokens=request.num_tokens, temperature=1.0,
        top_k=NO_TOP_K, top_p=1.0, min_p=0.0, seed=seed, stop_tokens=frozenset(), stop_strings=(),
        wants_prompt_logprobs=False, num_prompt_topk=0, num_topk=0,
    )  # fmt: skip


async def run_engine(engine: EngineThread, requests: list[Request]) -> None:
    began = time.perf_counter()

    async def one(index: int, request: Request) -> None:
        await asyncio.sleep(max(0.0, began + request.arrives_s - time.perf_counter()))
        async with engine.sampling(job_of(request, index), slot=0, streams=True) as sampling:
            async for deltas in sampling:
                now = time.perf_counter() - began
                request.token_times += [now] * sum(len(delta.tokens) for delta in deltas)

    await asyncio.gather(*(one(index, request) for index, request in enumerate(requests)))


def run_generate(model: torch.nn.Module, requests: list[Request]) -> None:
    began, left = time.perf_counter(), list(requests)
    while left:
        time.sleep(max(0.0, began + left[0].arrives_s - time.perf_counter()))
        now = time.perf_counter() - began
        batch = [request for request in left if request.arrives_s <= now][:MOST_AT_ONCE]
        left = left[len(batch) :]
        ids_BT, mask_BT = left_padded([request.prompt for request in batch])
        generate(model, ids_BT, mask_BT, 1, max(request.num_tokens for request in batch))  # type: ignore[arg-type]
        for request in batch:
            request.token_times = [time.perf_counter() - began] * request.num_tokens


def figures(requests: list[Request]) -> dict[str, float]:
    firsts = [request.token_times[0] - request.arrives_s for request in requests]
    lasts = [request.token_times[-1] - request.arrives_s for request in requests]
    gaps = np.concatenate([np.diff(request.token_times) for request in requests])
    found = {"first_token_ms": firsts, "between_tokens_ms": gaps, "whole_ms": lasts}
    return {
        f"{name}_p{percentile}": float(np.percentile(values, percentile)) * 1e3
        for name, values in found.items()
        for percentile in (50, 95, 99)
    } | {"tokens_per_s": sum(r.num_tokens for r in requests) / max(r.token_times[-1] for r in requests)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    flags = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    plain = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32).eval()
    base = load_base_model(flags.model, device="cpu")
    table = AdapterTable(LoraLayers.install(base), num_slots=1)
    engine = TorchEngine(base, table, max_rows=MOST_AT_ONCE, budget_tokens=1 << 16)
    answer(ready=True)
    asyncio.run(_answer_all(plain, engine))


async def _answer_all(plain: torch.nn.Module, engine: TorchEngine) -> None:
    thread = EngineThread(engine)
    thread.start()
    for line in sys.stdin:
        question = json.loads(line)
        kind, requests = question.pop("kind"), arrivals(**question)
        if kind == "engine":
            await run_engine(thread, requests)
        else:
            run_generate(plain, requests)
        answer(**figures(requests))
    await thread.close()


if __name__ == "__main__":
    main()
