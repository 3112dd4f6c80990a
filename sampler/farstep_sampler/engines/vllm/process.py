"""vLLM's processes: started with settings that make it sample as the torch engine does, watched, and ended.

vLLM runs its engine and workers in processes of their own, below this one. None of them outlives it: on the way out
they are shut down, and each worker watches this process (`worker`) for the case that it is killed. A vLLM
that has died, or that answers nothing for a minute, is ended and never started again: whoever supervises this process
starts it anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import psutil
import torch
from vllm import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from farstep_proto.errors import InvalidInput
from farstep_sampler.engines.vllm import SAMPLER_PID
from farstep_sampler.request import MAX_TOPK

log = logging.getLogger(__name__)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM lays memory out for
_CPU_SHARE = 0.25  # of all memory, for keys and values: other processes live here too
_CPU_BLOCK = 32  # tokens; the prefix cache shares whole blocks, and CPU kernels want multiples of 32
# What the sampler depends on, or has flags of its own for.
_OURS = frozenset(
    {
        "model",
        "tokenizer",
        "dtype",
        "load_format",
        "trust_remote_code",
        "max_model_len",
        "max_num_seqs",
        "enable_lora",
        "lora_dtype",
        "lora_target_modules",
        "max_loras",
        "max_cpu_loras",
        "max_lora_rank",
        "max_logprobs",
        "logprobs_mode",
        "structured_outputs_config",
        "worker_extension_cls",
    }
)
_CPU_STEP_TOKENS = 4096
_WORKER_EXTENSION = "farstep_sampler.engines.vllm.worker.WorkerExtension"
_WATCH_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How to start vLLM.

    `cache_tokens` is 0 where the machine decides; `lora_modules` are the last parts of the names of all layers that
    can have an adapter; `options` are further settings by vLLM's own names.
    """

    path: str
    dtype: torch.dtype
    max_seq_len: int
    num_slots: int
    max_rank: int
    max_rows: int
    cache_tokens: int
    lora_modules: tuple[str, ...]
    options: Mapping[str, Any]

    def engine_args(self) -> AsyncEngineArgs:
        """Raises InvalidInput when vLLM does not know an option, or we decide it."""
        known = {field.name for field in fields(AsyncEngineArgs)}
        for name in self.options:
            if name not in known:
                raise InvalidInput(f"vLLM has no setting {name!r}", field="vllm_options")
            if name in _OURS:
                raise InvalidInput(f"{name!r} is not for setting: the sampler depends on it", field="vllm_options")
        settings: dict[str, Any] = {
            "model": self.path,
            "dtype": str(self.dtype).removeprefix("torch."),
            "load_format": "safetensors",
            "trust_remote_code": False,
            "generation_config": "vllm",  # a model's own idea of temperature and top-p is not asked for
            "max_model_len": self.max_seq_len + 1,  # with the token that vLLM adds to a prompt that is only looked at
            "max_num_seqs": self.max_rows,
            "enable_lora": True,
            "max_loras": self.num_slots,
            "max_cpu_loras": self.num_slots,
            "max_lora_rank": vllm_rank(self.max_rank),
            "lora_target_modules": list(self.lora_modules),
            "max_logprobs": MAX_TOPK,
            "logprobs_mode": "processed_logprobs",
            "structured_outputs_config": {"backend": "guidance"},  # the torch engine's library too
            "disable_log_stats": True,
            "worker_extension_cls": _WORKER_EXTENSION,
        }
        if current_platform.is_cpu():
            settings["block_size"] = _CPU_BLOCK
            # Its kernels for a CPU give rows without an adapter whatever is in the last slot: that one stays empty.
            settings["max_loras"] = settings["max_cpu_loras"] = self.num_slots + 1
            # On a CPU vLLM dies of a seeded request whose prompt is computed in parts (it winds its generator back).
            settings["enable_chunked_prefill"] = False
            settings["max_num_batched_tokens"] = max(_CPU_STEP_TOKENS, self.max_seq_len + 1)
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            settings["kv_cache_memory_bytes"] = int(_CPU_SHARE * memory)
        if self.cache_tokens:
            block_size = self.options.get("block_size") or settings.get("block_size") or 16
            settings["num_gpu_blocks_override"] = -(-self.cache_tokens // block_size) + 1
        return AsyncEngineArgs(**{**settings, **self.options})


def vllm_rank(rank: int) -> int:
    """The smallest rank that vLLM can be started for and that holds `rank`.

    Raises:
        InvalidInput: there is none.
    """
    fitting = [each for each in RANKS if each >= rank]
    if not fitting:
        raise InvalidInput(f"vLLM takes ranks up to {RANKS[-1]}, not {rank}", field="max_lora_rank")
    return fitting[0]


def default_dtype() -> torch.dtype:
    """As the trainer's: fp32 on a CPU and bf16 elsewhere."""
    return torch.float32 if current_platform.is_cpu() else torch.bfloat16


def built_for() -> str:
    """Where vLLM computes; decided by how it was built."""
    return str(current_platform.device_type)


def parse_options(text: str) -> dict[str, Any]:
    """Raises InvalidInput unless the text is a JSON object."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"not JSON: {error}", field="vllm_options") from error
    if not isinstance(options, dict):
        raise InvalidInput("not a JSON object", field="vllm_options")
    return options


class VllmProcess:
    """vLLM while it runs. Made by `start`, on the event loop that then uses it; blocks until it is ready."""

    def __init__(self, llm: AsyncLLM, processes: list[psutil.Process]) -> None:
        self.llm = llm
        self._processes = processes
        self._is_killed = False

    @classmethod
    def start(cls, settings: VllmSettings) -> VllmProcess:
        """Loads the model.

        Raises:
            InvalidInput: settings or a model that vLLM does not take.
        """
        args = settings.engine_args()
        before = set(multiprocessing.active_children())
        try:
            with _children_set_up():
                llm = AsyncLLM.from_engine_args(args)
        except Exception as error:  # whatever a model or a setting makes vLLM raise; its own log says more
            raise InvalidInput(f"vLLM does not start: {error}", field="base_model") from error
        engines = [psutil.Process(child.pid) for child in set(multiprocessing.active_children()) - before]
        return cls(llm, [*engines, *(child for engine in engines for child in engine.children(recursive=True))])

    @property
    def is_alive(self) -> bool:
        return not self._is_killed and not self.llm.errored

    async def watch(self, *, patience_s: float) -> None:
        """Returns, with vLLM ended, as soon as it has died or has answered nothing for `patience_s` seconds."""
        while self.is_alive:
            try:
                async with asyncio.timeout(patience_s):
                    await self.llm.list_loras()  # goes through all its processes and back
            except TimeoutError:
                log.error("vLLM has answered nothing for %g s; it is ended", patience_s)
                break
            except Exception:  # the engine is dead, or as good as
                log.exception("vLLM does not answer")
                break
            await asyncio.sleep(_WATCH_INTERVAL_S)
        self.kill()

    async def clean_cache(self) -> None:
        """Takes what is not finite out of the cache, where that would spread to other requests."""
        await self.llm.collective_rpc("clean_cache")

    def kill(self) -> None:
        """Ends its processes at once; the requests in them fail."""
        self._is_killed = True
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    async def close(self) -> None:
        """Ends it, gently where that works."""
        await asyncio.to_thread(self.llm.shutdown)
        self.kill()


@contextmanager
def _children_set_up() -> Iterator[None]:
    """Processes started inside the block know whom they end with, and write to standard error alone."""
    kept = os.dup(1)
    os.dup2(2, 1)
    os.environ[SAMPLER_PID] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[SAMPLER_PID]
        os.dup2(kept, 1)
        os.close(kept)
