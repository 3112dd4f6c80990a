"""The start and the end of a data-parallel trainer, as rank 0 sees them.

Invariant: once `leading` has given an executor, the loss of any other process ends this one: with exit code 1, after
the operations that wait have heard of it. Something else starts it again; replicas cannot be mended.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_proto.v1 import ranks_pb2
from farstep_worker.compute import ComputeSettings, prepare
from farstep_worker.data_parallel import LeadingExecutor
from farstep_worker.evicted import EvictedRuns
from farstep_worker.followers import Followers
from farstep_worker.publisher import Publisher
from farstep_worker.ranks import RankGroup, device_of

log = logging.getLogger(__name__)

_NOT_FOR_FOLLOWERS = ("FARSTEP_API_KEY", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What every process of the group is started with. `num_threads` are those of each.

    `run_memory_bytes` is for rank 0, which decides who leaves memory: all ranks hold the same.
    """

    world: int
    model: str
    store: str
    device: str
    compute: ComputeSettings
    num_threads: int
    log_level: str
    run_memory_bytes: int | None = None
    publisher: Callable[[CheckpointStore], Publisher] = Publisher  # of rank 0 alone


@contextmanager
def leading(
    settings: GroupSettings, evicted: EvictedRuns | None = None, *, on_loss: Callable[[str], None]
) -> Iterator[LeadingExecutor]:
    """An executor whose passes run on all ranks, which are here as long as the block.

    `on_loss` is called, on any thread and perhaps more than once, when the group has lost a rank. A rank that does not
    even become ready ends this process at once.

    Raises:
        InvalidInput, NotFound: no such model, or too few devices for so many ranks.
    """
    device = device_of(0, world=settings.world, device=settings.device)
    with tempfile.TemporaryDirectory(prefix="farstep-ranks-", ignore_cleanup_errors=True) as folder:
        rendezvous = Path(folder) / "meeting"
        commands = [_command(settings, rank, rendezvous) for rank in range(1, settings.world)]
        followers = Followers(on_death=lambda epitaph: _end_at_once(epitaph, folder))
        try:
            followers.start(commands, env=_env(settings))
            group = RankGroup.join(rendezvous, rank=0, world=settings.world, device=device)
            if device.type == "cpu":  # NCCL looks at the file again; otherwise nothing is to be left, however we end
                shutil.rmtree(folder)
            ready = prepare(settings.model, settings.compute, device=device, num_threads=settings.num_threads)
            for rank in range(1, settings.world):
                group.receive(rank, ranks_pb2.RankReport)
            log.info("%d processes on %s, %d threads each", settings.world, device.type, settings.num_threads)
            followers.on_death = on_loss
            group.on_lost = lambda reason: _told(on_loss, followers.epitaph(reason))
            store = open_store(settings.store)
            yield LeadingExecutor(
                ready.layers,
                store,
                token_budget=ready.token_budget,
                layout=ready.layout,
                group=group,
                evicted=evicted,
                run_memory_bytes=settings.run_memory_bytes,
                publisher=settings.publisher(store),
            )
        finally:
            followers.close()
            RankGroup.leave()


class Ending:
    """How a trainer that leads others ends: by a signal, or because one of the others did."""

    def __init__(self) -> None:
        self._has_lost = False

    def lose(self, reason: str) -> None:
        """Ends the process in order, from any thread."""
        if not self._has_lost:
            self._has_lost = True
            log.critical("%s: this trainer ends; start it again and go on from the last checkpoint", reason)
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Within the block SIGTERM raises SystemExit, so that the other processes are seen off."""

        def leave(sig: int, frame: FrameType | None) -> NoReturn:
            raise SystemExit(1 if self._has_lost else 128 + sig)

        before = signal.signal(signal.SIGTERM, leave)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def _command(settings: GroupSettings, rank: int, rendezvous: Path) -> list[str]:
    flags = {
        "rank": rank,
        "world": settings.world,
        "rendezvous": rendezvous,
        "num-threads": settings.num_threads,
        "model": settings.model,
        "store": settings.store,
        "device": settings.device,
        "log-level": settings.log_level,
    }
    return [
        sys.executable,
        "-m",
        "farstep_worker.follow",
        *(text for name, value in flags.items() for text in (f"--{name}", str(value))),
        *settings.compute.to_flags(),
    ]


def _env(settings: GroupSettings) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_FOLLOWERS}
    return {**env, "OMP_NUM_THREADS": str(settings.num_threads)}


def _told(on_loss: Callable[[str], None], reason: str) -> str:
    on_loss(reason)
    return reason


def _end_at_once(epitaph: str, folder: str) -> NoReturn:
    log.critical("%s before it was ready", epitaph)
    shutil.rmtree(folder, ignore_errors=True)
    sys.stderr.flush()
    os._exit(1)
