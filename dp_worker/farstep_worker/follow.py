"""`python -m farstep_worker.follow`: a process that trains along with another, which starts it.

It serves nobody and writes no file. It does what rank 0 says until its standard input closes.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from farstep_infra.store.checkpoints import open_store
from farstep_proto.errors import ApiError
from farstep_proto.v1 import ranks_pb2
from farstep_serving.process import exit_with_parent, setup_logging
from farstep_worker.compute import ComputeSettings, prepare
from farstep_worker.data_parallel import FollowingExecutor
from farstep_worker.memory import settle_memory
from farstep_worker.ranks import RankDied, RankGroup, device_of

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Raises SystemExit where the model cannot be loaded, and where rank 0 has gone first."""
    parser = argparse.ArgumentParser(prog="python -m farstep_worker.follow", description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True)
    parser.add_argument("--num-threads", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--log-level", required=True)
    ComputeSettings.add_flags(parser)
    flags = parser.parse_args(argv)
    setup_logging(flags.log_level)
    settle_memory()
    exit_with_parent()
    torch.set_num_threads(flags.num_threads)
    try:
        device = device_of(flags.rank, world=flags.world, device=flags.device)
        group = RankGroup.join(flags.rendezvous, rank=flags.rank, world=flags.world, device=device)
        ready = prepare(flags.model, ComputeSettings.of(flags), device=device, num_threads=flags.num_threads)
        log.info("rank %d of %d on %s, %d threads", flags.rank, flags.world, device, flags.num_threads)
        store = open_store(flags.store)
        executor = FollowingExecutor(
            ready.layers, store, token_budget=ready.token_budget, layout=ready.layout, group=group
        )
        follow(executor, group)
    except RankDied as error:
        raise SystemExit(f"rank {flags.rank} ends: {error.message}") from error
    except ApiError as error:
        raise SystemExit(error.message) from error


def follow(executor: FollowingExecutor, group: RankGroup) -> None:
    """Says that it is there, then obeys; raises RankDied at the end."""
    group.send(0, ranks_pb2.RankReport())
    while True:
        command = group.receive(0, ranks_pb2.RankCommand)
        group.send(0, executor.obey(command))


if __name__ == "__main__":
    main()
