"""vLLM's side of the sampling benchmark, in an environment of its own: vLLM as it is, without anything of ours.

    with start(python, model=folder, adapter=peft_folder, num_threads=2, log=log) as vllm:
        seconds = sample(vllm, prompts, num_samples=4, max_tokens=64)

Everything is handed to vLLM at once and nothing is asked for but tokens and their log-probabilities, which is what
it does best. `python -m bench.vllm_side --help` times it by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.child import Child, answer

WARMUPS = 2


def start(
    python: str | Path, *, model: Path, adapter: Path | None, num_threads: int, log: Path, dtype: str = "float32"
) -> Child:
    """Starts vLLM; takes a minute or two, most of it compiling.

    Args:
        python: an interpreter of an environment with vLLM.
        adapter: a folder in PEFT's format, of rank 16 at most.
    """
    options = ["--adapter", adapter] if adapter is not None else []
    arguments = ["--serve", "--model", model, "--dtype", dtype, "--threads", str(num_threads), *options]
    return Child("bench.vllm_side", *arguments, num_threads=num_threads, log=log, python=python)


def sample(vllm: Child, prompts: Sequence[Sequence[int]], *, num_samples: int, max_tokens: int, lora: bool) -> float:
    """Seconds for all samples of all prompts, each of exactly `max_tokens`, at temperature 1."""
    question = {"prompts": [list(prompt) for prompt in prompts], "num_samples": num_samples, "max_tokens": max_tokens}
    found = vllm.ask(**question, lora=lora)
    assert found["num_tokens"] == len(prompts) * num_samples * max_tokens, found
    return float(found["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.vllm_side", description=__doc__)
    parser.add_argument("--python", help="of an environment with vLLM; by hand only")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(flags)
    else:
        _by_hand(flags)


def _by_hand(flags: argparse.Namespace) -> None:
    """16 prompts of 32 tokens × 4 samples × 64 tokens, five times."""
    prompts = [[10 + (7 * i + 13 * j) % 300 for j in range(32)] for i in range(16)]
    log = Path(tempfile.mkdtemp()) / "vllm.log"
    settings = {"model": flags.model, "adapter": flags.adapter, "num_threads": flags.threads, "dtype": flags.dtype}
    with start(flags.python or sys.executable, log=log, **settings) as vllm:
        rates = {}
        for lora in (False, True) if flags.adapter else (False,):
            times = [sample(vllm, prompts, num_samples=4, max_tokens=64, lora=lora) for _ in range(WARMUPS + 5)]
            rates["lora" if lora else "base"] = round(16 * 4 * 64 / statistics.median(times[WARMUPS:]))
    print(json.dumps({"vllm": vllm.facts["vllm"], "tokens_per_s": rates}))


# In vLLM's environment from here on.


def _serve(flags: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the way out through which vLLM ends its own processes
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM and its processes print belongs into the log
    # The cores are shared by whoever started this, not by vLLM.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import vllm

    llm = vllm.LLM(
        model=str(flags.model),
        dtype=flags.dtype,
        max_num_seqs=64,
        kv_cache_memory_bytes=1 << 30,
        block_size=32,
        generation_config="vllm",
        disable_log_stats=True,
        enable_lora=flags.adapter is not None,
        max_loras=1,
        max_lora_rank=16,
    )
    try:
        with contextlib.redirect_stdout(answers):
            answer(vllm=vllm.__version__, threads=flags.threads)
        for line in sys.stdin:
            measured = _measured(llm, json.loads(line), adapter=flags.adapter)
            with contextlib.redirect_stdout(answers):
                answer(**measured)
    finally:
        with contextlib.suppress(AttributeError):  # its name for this has changed before
            llm.llm_engine.engine_core.shutdown()
        for process in multiprocessing.active_children():
            process.kill()


def _measured(llm: Any, question: dict[str, Any], *, adapter: Path | None) -> dict[str, float]:
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    params = SamplingParams(
        n=question["num_samples"],
        max_tokens=question["max_tokens"],
        temperature=1.0,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )
    request = LoRARequest("adapter", 1, str(adapter)) if question["lora"] and adapter is not None else None
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in question["prompts"]]
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, lora_request=request, use_tqdm=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "num_tokens": sum(len(each.token_ids) for o in outputs for each in o.outputs)}


if __name__ == "__main__":
    main()
