"""What this machine has to share out, and how many processes can train together on it. Decided without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from farstep_proto.errors import InvalidInput

_GPU = re.compile(r"nvidia\d+\Z")


@dataclass(frozen=True, slots=True)
class Machine:
    num_cpus: int
    num_gpus: int

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> Machine:
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        num_gpus = sum(1 for path in devices.iterdir() if _GPU.match(path.name)) if devices.is_dir() else 0
        if visible is not None:
            chosen = [each for each in visible.split(",") if each.strip() not in ("", "-1")]
            num_gpus = min(num_gpus, len(chosen))
        return cls(num_cpus, num_gpus)

    def check_trainer_replicas(self, count: int, *, device: str) -> None:
        """Raises:
        InvalidInput: so many processes cannot train together on `device` here.
        """
        if count <= 1:
            return
        if device == "cpu" or (device == "auto" and not self.num_gpus):
            most, have = self.num_cpus, f"{self.num_cpus} CPUs"
        elif device in ("auto", "cuda"):
            most, have = self.num_gpus, f"{self.num_gpus} GPUs"
        else:
            most, have = 1, f"{device} alone"
        if count > most:
            raise InvalidInput(
                f"{count} processes that train together need as many processors; trainers here have {have}",
                field="replicas",
                hint=f"replicas may be at most {max(1, most)}",
            )
