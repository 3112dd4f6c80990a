"""A vLLM engine for tests: the embedded model in fp32 on the CPU, compiled by nobody, in little memory."""

import os

from farstep_sampler.engines.vllm.engine import VllmEngine, make_vllm_engine

OPTIONS = '{"enforce_eager": true, "kv_cache_memory_bytes": 536870912}'
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # 20 s of compiling, for a sum


def vllm_engine(*, num_slots: int = 4, model: str = "farstep/tiny", patience_s: float = 60.0) -> VllmEngine:
    _, engine = make_vllm_engine(
        model,
        device="auto",
        num_slots=num_slots,
        max_rank=16,
        max_rows=64,
        cache_tokens=0,
        options=OPTIONS,
        patience_s=patience_s,
    )
    return engine
