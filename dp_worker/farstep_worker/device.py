"""What differs between a CPU and a GPU, in one place; everything else computes on either in the same way.

Nothing here computes: it moves data, gives memory back, keeps random states, tells time and memory.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from farstep_model.packed import Layout
from farstep_proto.errors import ApiError
from farstep_worker.phases import Phases
from farstep_worker.token_budget import fitting_tokens

CPU_TOKEN_BUDGET = 2_048  # of each thread: with less to do, threads meet more often than they compute
MAX_CPU_TOKEN_BUDGET = 8_192
GPU_TOKEN_BUDGET = 16_384  # at most: more at once gains little and takes memory from everything else
TRIAL_TOKENS = (512, 2_048)
# What the allocators of a host and of matrix libraries say, where torch has no error of its own.
_OUT_OF_MEMORY_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Device(ABC):
    """Where a process computes."""

    layout: Layout

    def __init__(self, place: torch.device) -> None:
        self.place = place

    @abstractmethod
    def token_budget(self, trial: Callable[[int], None], *, num_threads: int) -> int:
        """Tokens of a micro-batch, where nobody says otherwise. `trial` computes a pass over so many."""

    @abstractmethod
    def upload(self, array: np.ndarray) -> Tensor:
        """The array there; the host does not wait for it."""

    @abstractmethod
    def give_back(self) -> None:
        """Memory that is free and was kept."""

    @abstractmethod
    def random_state(self) -> Tensor:
        """Of the generator that dropout draws from."""

    @abstractmethod
    def set_random_state(self, state: Tensor) -> None: ...

    @abstractmethod
    def phases(self) -> Phases:
        """A stopwatch that knows when work is done, not only asked for."""


class Cpu(Device):
    layout = "padded"

    def token_budget(self, trial: Callable[[int], None], *, num_threads: int) -> int:
        return min(CPU_TOKEN_BUDGET * num_threads, MAX_CPU_TOKEN_BUDGET)

    def upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array)

    def give_back(self) -> None:
        """Nothing is kept here but by the C library, which uses it again."""

    def random_state(self) -> Tensor:
        return torch.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        torch.set_rng_state(state)

    def phases(self) -> Phases:
        return Phases()


class Gpu(Device):
    layout = "packed"

    def token_budget(self, trial: Callable[[int], None], *, num_threads: int) -> int:
        peaks: dict[int, int] = {}
        try:
            trial(TRIAL_TOKENS[0])  # what is made at first use is not counted
            for num_tokens in TRIAL_TOKENS:
                with self.peak_bytes() as peak:
                    trial(num_tokens)
                peaks[num_tokens] = peak[0]
        except ApiError:  # not even that fits; the first pass will say so
            return TRIAL_TOKENS[0]
        return fitting_tokens(peaks, free_bytes=self.free_bytes(), most=GPU_TOKEN_BUDGET)

    def upload(self, array: np.ndarray) -> Tensor:
        with torch.cuda.device(self.place):  # pinning opens the current device, which may be another's
            return torch.from_numpy(array).pin_memory().to(self.place, non_blocking=True)

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.place)

    def set_random_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state, self.place)

    def phases(self) -> Phases:
        return GpuPhases(self.place)

    def free_bytes(self) -> int:
        """What can still be allocated, kept memory included."""
        free, _ = torch.cuda.mem_get_info(self.place)
        return free + torch.cuda.memory_reserved(self.place) - torch.cuda.memory_allocated(self.place)

    @contextmanager
    def peak_bytes(self) -> Iterator[list[int]]:
        """Gives a list that after the block holds how much more than before was allocated at most."""
        torch.cuda.synchronize(self.place)
        before = torch.cuda.memory_allocated(self.place)
        torch.cuda.reset_peak_memory_stats(self.place)
        peak: list[int] = []
        yield peak
        torch.cuda.synchronize(self.place)
        peak.append(torch.cuda.max_memory_allocated(self.place) - before)


class GpuPhases(Phases):
    """Times by events on the GPU's own stream: the host runs ahead of it, and need not wait before the end."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self._place = place
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self._place)
        started.record(stream)
        try:
            yield
        finally:
            ended.record(stream)
            self._events.append((phase, started, ended))

    def finish(self) -> None:
        for phase, started, ended in self._events:
            ended.synchronize()
            self.add(phase, started.elapsed_time(ended) / 1e3)
        self._events.clear()


@functools.cache
def device_at(place: torch.device) -> Device:
    return Cpu(place) if place.type == "cpu" else Gpu(place)


def settle_numerics(*, deterministic: bool) -> None:
    """Once, before anything is computed. fp32 means fp32: no TF32, unless torch is told otherwise elsewhere.

    Deterministic kernels are slower on a GPU; a CPU repeats itself without them.
    """
    torch.set_float32_matmul_precision("highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # it would only cost time


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at a time might have gone well."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
