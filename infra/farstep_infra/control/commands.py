"""The command lines of the servers that a control plane starts: what is the same for all of a kind, said once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["trainer", "sampler", "router"]

_MODULES: dict[Role, str] = {
    "trainer": "farstep_worker",
    "sampler": "farstep_sampler",
    "router": "farstep_sampler.router",
}


def _none(base_model: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Commands:
    """Args:
    host: the address that the servers listen on.
    store: where they and we keep checkpoints: a directory or s3://bucket/prefix.
    device: where they compute: "auto", "cpu", "cuda", "cuda:0", …
    journals: a directory with one of each trainer.
    weight_sync_uri: where trainers write their policies as well; may be empty.
    custom_losses: whether trainers compute losses that clients send in.
    front_flags: of every sampler and router: what their OpenAI API is told.
    names_of: further names of a base model, for that API.
    """

    host: str
    store: str
    device: str
    journals: Path
    weight_sync_uri: str = ""
    custom_losses: bool = False
    front_flags: tuple[str, ...] = ()
    names_of: Callable[[str], Sequence[str]] = _none

    def trainer(self, base_model: str, *, port: int, feed_port: int, num_processes: int, name: str) -> tuple[str, ...]:
        """`name`: of its journal; the same in every life of the same trainer, and of no other."""
        more = (f"--weight-sync-uri={self.weight_sync_uri}",) if self.weight_sync_uri else ()
        processes = (f"--nproc={num_processes}",) if num_processes > 1 else ()
        losses = ("--custom-losses",) if self.custom_losses else ()
        return self._command(
            "trainer",
            port,
            *self._model(base_model),
            f"--feed-port={feed_port}",
            f"--journal={self.journal(name)}",
            *processes,
            *more,
            *losses,
        )

    def journal(self, name: str) -> Path:
        """Of the trainer with that name."""
        return self.journals / name

    def sampler(self, base_model: str, *, port: int, feed: str, model_path: str) -> tuple[str, ...]:
        """`feed`: host:port of a trainer's; `model_path`: a checkpoint to serve; either may be empty."""
        feeds = (f"--feed={feed}",) if feed else ()
        checkpoints = (f"--model-path={model_path}",) if model_path else ()
        return self._command("sampler", port, *self._model(base_model), *feeds, *checkpoints, *self._front(base_model))

    def router(self, base_model: str, replica_urls: Sequence[str], *, port: int) -> tuple[str, ...]:
        replicas = (f"--replica={url}" for url in replica_urls)
        return self._command("router", port, *replicas, *self._front(base_model))

    def _front(self, base_model: str) -> tuple[str, ...]:
        return (*(f"--served-name={name}" for name in self.names_of(base_model)), *self.front_flags)

    def _model(self, base_model: str) -> tuple[str, ...]:
        return (f"--model={base_model}", f"--store={self.store}", f"--device={self.device}")

    def _command(self, role: Role, port: int, *flags: str) -> tuple[str, ...]:
        # -P: a file in the user's directory must not shadow a module of the child.
        where = (f"--host={self.host}", f"--port={port}", "--exit-with-parent")
        return (sys.executable, "-P", "-m", _MODULES[role], *flags, *where)
