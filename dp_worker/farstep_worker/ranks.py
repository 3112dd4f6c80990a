"""The group of processes that train together: messages between two of them, sums over all.

Rank 0 leads and the others follow. Messages are protobuf as bytes, and nothing is pickled. Sums run where the tensors
are: by gloo on a CPU, by NCCL on GPUs; everything else runs by gloo, which sees a closed connection at once.

Invariant: once a peer is lost, every call raises, and none waits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from google.protobuf.message import Message
from torch import Tensor

from farstep_proto.errors import InvalidInput, ModelError

M = TypeVar("M", bound=Message)

_FOREVER = timedelta(days=365)  # a follower waits for its next command as long as there is none


class RankDied(ModelError):
    """A process of the group is gone, or no longer holds what the others hold: the group cannot go on."""

    error_class = "RankDiedError"

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            error_class=RankDied.error_class,
            hint="the trainer ends; start it again and go on from the last checkpoint",
        )


def device_of(rank: int, *, world: int, device: str) -> torch.device:
    """Where a rank computes: on a GPU of its own, or on the CPU that all share.

    Raises:
        InvalidInput: there are fewer GPUs than ranks, or the device is one that cannot be shared out.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda":
        raise InvalidInput(
            f"{world} processes cannot share {device!r}", field="device", hint="auto, cpu or cuda: rank i takes cuda:i"
        )
    if torch.cuda.device_count() < world:
        raise InvalidInput(f"{world} processes need as many GPUs, {torch.cuda.device_count()} are here", field="nproc")
    return torch.device("cuda", rank)


class RankGroup:
    """One process's place in the group. Made by `join`; used from one thread at a time.

    `on_lost` hears of a lost peer once per call that found it, and says more about it if it can.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self.on_lost: Callable[[str], str] = lambda reason: reason
        self._lost: str | None = None

    @classmethod
    def join(cls, rendezvous: Path, *, rank: int, world: int, device: torch.device) -> RankGroup:
        """Waits until all `world` processes have met over a file that did not exist before."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())  # all ranks are on this machine
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=dist.FileStore(str(rendezvous), world),  # type: ignore[attr-defined]
            rank=rank,
            world_size=world,
            timeout=_FOREVER,
        )
        group = cls(rank, world)
        group.sum(torch.zeros(1, device=device))  # NCCL meets on first use, while the file is still there
        return group

    def send(self, rank: int, message: Message) -> None:
        """Raises RankDied."""
        data = message.SerializeToString()
        with self._peers():
            dist.send(torch.tensor([len(data)]), rank)
            if data:
                dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), rank)

    def receive(self, rank: int, kind: type[M]) -> M:
        """Waits for the next message from a rank; raises RankDied."""
        size = torch.zeros(1, dtype=torch.int64)
        with self._peers():
            dist.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            if len(data):
                dist.recv(data, rank)
        return kind.FromString(data.numpy().tobytes())

    def all_succeeded(self, *, succeeded: bool) -> bool:
        """Whether every rank did; each gets the same answer. Raises RankDied."""
        flag = torch.tensor([int(succeeded)])
        with self._peers():
            dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def sum(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all ranks, the same bits on each; raises RankDied."""
        with self._peers():
            dist.all_reduce(tensor)

    def hand_out(self, tensors: Iterable[Tensor]) -> None:
        """Replaces tensors by those of rank 0, the same bits on each rank; raises RankDied."""
        with self._peers():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def check_whole(self) -> None:
        """Raises RankDied where a peer is known to be lost."""
        if self._lost is not None:
            raise RankDied(self._lost)

    def lose(self, reason: str) -> RankDied:
        """Gives the group up: the error to raise now, and by every call from now on."""
        if self._lost is None:
            self._lost = self.on_lost(reason)
        return RankDied(self._lost)

    @staticmethod
    def leave() -> None:
        """Closes this process's connections, if it has joined a group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _peers(self) -> Iterator[None]:
        self.check_whole()
        try:
            yield
        except RuntimeError as error:
            raise self.lose(str(error)) from error


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next(name for name in names if name.startswith("lo"))
