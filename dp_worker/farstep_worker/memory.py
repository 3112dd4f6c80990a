"""What memory there is, and what a training process keeps of that which it has used: settled before it computes."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>; threads share one arena, as only the first keeps memory.
_MALLOC_SETTINGS = {-8: 1, -4: 0, -1: 2**31 - 1}


def total_bytes(device: torch.device) -> int:
    """What a device has in all; of the host's memory, what this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:  # no container, or another system
        return host
    return min(host, int(limit)) if limit.isdecimal() else host


def settle_memory() -> None:
    _limit_prepared_products()
    _keep_freed_memory()


def _limit_prepared_products() -> None:
    """Bounds what oneDNN keeps of shapes that it has met: by default a thousand, at about a megabyte each.

    Sequences of ever new lengths fill that. A micro-batch needs some thirty; its variables are read at the first use.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, "64")


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next allocation; elsewhere nothing happens.

    A pass frees its activations and the next one wants as much again. Given back to the kernel in between, every page
    of them is zeroed and mapped anew: a tenth of the time of a step of a small model.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for parameter, value in _MALLOC_SETTINGS.items():
            mallopt(parameter, value)
