"""What sampling controls cost on a large vocabulary, a function at a time, without a model.

`python -m bench.sample_controls`: top-k, top-p and min-p against a full sort of every row, which takes turns with
them; penalties, and the masks of a grammar. The last line is one JSON object: `truncate_over_sort` are ratios of
medians (how many times faster), the rest are medians in milliseconds a step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from farstep_model.embedded import model_dir
from farstep_sampler.constraint import Constraint
from farstep_sampler.grammars import Grammars
from farstep_sampler.penalties import SeenTokens, penalised
from farstep_sampler.request import NO_TOP_K
from farstep_sampler.sampling import truncate

# As steep as a language model's: the likeliest token has about half of the weight.
_STEEPNESS = 6.0
CASES = {
    "top_k=50": (50, 1.0, 0.0),
    "top_p=0.95": (NO_TOP_K, 0.95, 0.0),
    "top_k=50,top_p=0.95": (50, 0.95, 0.0),
    "min_p=0.05": (NO_TOP_K, 1.0, 0.05),
    "top_p=0.95,flat": (NO_TOP_K, 0.95, 0.0),
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {}}},
    "required": ["name", "age", "tags"],
}


def by_sorting(weights_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor) -> Tensor:
    """The same as `truncate`, with every row sorted."""
    sorted_RV, order_RV = weights_RV.sort(dim=-1, descending=True, stable=True)
    kept_RV = torch.arange(weights_RV.shape[1]) < top_k_R[:, None]
    within_RV = torch.where(kept_RV, sorted_RV, 0.0)
    limit_R = torch.where(top_p_R < 1, top_p_R * within_RV.sum(dim=-1), torch.inf)
    kept_RV &= within_RV.cumsum(dim=-1) - within_RV < limit_R[:, None]
    kept_RV &= sorted_RV >= min_p_R[:, None] * sorted_RV[:, :1]
    return weights_RV * torch.zeros_like(kept_RV).scatter_(1, order_RV, kept_RV)


def alternated(*calls: Callable[[], object], repeats: int) -> list[float]:
    """The median of each in milliseconds; they take turns, after one turn that does not count."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            began_at = time.perf_counter()
            call()
            if turn:
                own.append((time.perf_counter() - began_at) * 1e3)
    return [statistics.median(own) for own in times]


def truncation(num_rows: int, vocab_size: int, *, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """How many times faster than sorting, and milliseconds a step."""
    logits_RV = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0))
    ratios, times_ms = {}, {}
    for name, (top_k, top_p, min_p) in CASES.items():
        steepness = 0.1 if "flat" in name else _STEEPNESS
        weights_RV = torch.softmax(logits_RV * steepness, -1).double()
        one_R = torch.ones(num_rows, dtype=torch.float64)
        arguments = (weights_RV, (one_R * top_k).long(), one_R * top_p, one_R * min_p)
        assert torch.equal(by_sorting(*arguments), truncate(*arguments))
        sorting_ms, own_ms = alternated(
            lambda a=arguments: by_sorting(*a), lambda a=arguments: truncate(*a), repeats=repeats
        )
        ratios[name], times_ms[name] = sorting_ms / own_ms, own_ms
    return ratios, times_ms


def penalties(num_rows: int, vocab_size: int, *, repeats: int) -> float:
    """Milliseconds a step for rows that have seen 1,000 tokens each."""
    logits_RV = torch.randn(num_rows, vocab_size)
    seen = SeenTokens(np.arange(1000, dtype=np.int32))
    ids_N = torch.from_numpy(np.tile(seen.ids, num_rows))
    counts_N = torch.from_numpy(np.tile(seen.counts, num_rows))
    rows_N = torch.arange(num_rows).repeat_interleave(len(seen.ids))
    one = torch.tensor(1.1)

    def step() -> None:
        logits_RV[rows_N, ids_N] = penalised(
            logits_RV[rows_N, ids_N], counts_N, presence=one, frequency=one, repetition=one
        )

    return alternated(step, repeats=repeats)[0]


def masks(*, repeats: int) -> float:
    """Milliseconds for one mask of a JSON schema with the embedded tokenizer, thread and back."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    grammars = Grammars(tokenizer, vocab_size=len(tokenizer), eos_token_ids=(tokenizer.eos_token_id,))
    grammar = asyncio.run(grammars.compiled(Constraint("json_schema", json.dumps(SCHEMA))))
    tokens = tokenizer.encode('{"name": "a b c", "age": 12, "tags": ["x", {"y": 1}]}')
    times: list[float] = []
    for _ in range(repeats):
        matcher = grammar.matcher()
        for token in tokens:
            began_at = time.perf_counter()
            matcher.mask()
            matcher.push(token)
            times.append((time.perf_counter() - began_at) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    ratios, times_ms = truncation(options.rows, options.vocab, repeats=options.repeats)
    for name, ratio in ratios.items():
        print(f"{name:24s} {times_ms[name]:8.2f} ms, {ratio:6.1f} × as fast as sorting")
    result = {
        "truncate_over_sort": ratios,
        "truncate_ms": times_ms,
        "penalties_ms": penalties(options.rows, options.vocab, repeats=options.repeats),
        "mask_ms": masks(repeats=options.repeats),
        "rows": options.rows,
        "vocab": options.vocab,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
