"""Where a run goes on that was cut off: its newest training checkpoint, and what the trainer wrote into it.

What the checkpoint says counts, because weights and the trainer's place are in it together; the run's folder only says
which run it was. A run that its trainer still has is taken over, else a new one is made from the checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farstep.errors import FarstepError, NotFoundError
from farstep.trainers.checkpoints import STATE_KEY
from farstep.trainers.errors import ConfigError, TrainerError
from farstep.trainers.run_folder import RunFolder

if TYPE_CHECKING:
    from farstep.checkpoints import Checkpoint
    from farstep.service import ServiceClient
    from farstep.trainers.config import ModelConfig
    from farstep.training import TrainingClient

log = logging.getLogger("farstep")

STATE_VERSION = 1
_FIXED = ("r", "alpha", "target_modules", "dropout", "train_attn", "train_mlp", "train_unembed")


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """`path`: of the checkpoint; `state`: the trainer's, from its metadata."""

    run_id: str
    path: str
    state: Mapping[str, Any]


def find_resume_point(
    folder: RunFolder, *, service: ServiceClient | None, client: TrainingClient | None, trainer: str
) -> ResumePoint | None:
    """The newest checkpoint of the run that was in this folder; None where there was none, or it saved nothing.

    Raises:
        TrainerError: the run was another trainer's, or what is there cannot be read.
    """
    left = folder.read()
    if left is None:
        return None
    checkpoint = _newest(_listed(left["run_id"], service=service, client=client))
    if checkpoint is not None:
        return ResumePoint(left["run_id"], checkpoint.path, read_state(checkpoint.metadata, trainer=trainer))
    if client is not None and left.get("path"):  # the checkpoint is another run's: what was written beside it
        return ResumePoint(left["run_id"], left["path"], read_state({STATE_KEY: left["state"]}, trainer=trainer))
    return None


def _listed(run_id: str, *, service: ServiceClient | None, client: TrainingClient | None) -> list[Checkpoint]:
    try:
        if service is not None:
            return service.list_checkpoints(run_id)
        if client is not None and client.run_id == run_id:
            return client.list_checkpoints()
    except NotFoundError:
        pass
    return []


def _newest(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    ours = [each for each in checkpoints if each.target == "trainer" and STATE_KEY in each.metadata]
    return max(ours, key=lambda each: (each.step or 0, each.created_at), default=None)


def read_state(metadata: Mapping[str, str], *, trainer: str) -> dict[str, Any]:
    """Raises TrainerError where it is not of this trainer, or of a newer version."""
    try:
        state: dict[str, Any] = json.loads(metadata[STATE_KEY])
        version, of = int(state["version"]), str(state["trainer"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainerError("the checkpoint's trainer state is damaged", stage="init") from error
    if version > STATE_VERSION:
        raise TrainerError(f"the checkpoint was made by a newer version ({version})", stage="init",
                           hint="update farstep")  # fmt: skip
    if of != trainer:
        raise TrainerError(f"the run here is of the trainer {of!r}, not of {trainer!r}", stage="init",
                           hint="give this run another name, or begin from its checkpoint by model.path")  # fmt: skip
    return state


def adapter_identity(model: ModelConfig) -> dict[str, Any]:
    """What of a model cannot be otherwise when a run is gone on with."""
    return {"base": model.base, **{name: getattr(model.lora, name) for name in _FIXED}}


def check_adapter(state: Mapping[str, Any], model: ModelConfig) -> None:
    """Raises ConfigError where the run has another model or adapter than the configuration: it would stay as it is."""
    kept, wanted = state.get("model") or {}, json.loads(json.dumps(adapter_identity(model)))
    for name in kept:
        if name in wanted and kept[name] != wanted[name]:
            field = "model.base" if name == "base" else f"model.lora.{name}"
            raise ConfigError(f"is {wanted[name]!r}, and the run that is to be gone on with has {kept[name]!r}",
                              field=field, hint="give this run another name to begin anew, or put it back")  # fmt: skip


def taken_over(service: ServiceClient, point: ResumePoint, **options: Any) -> TrainingClient:
    """A client that stands at the checkpoint: of the run itself, where a trainer still has it."""
    try:
        client = service.resume_run(point.run_id)
    except FarstepError as error:
        log.info("run %s is gone, a new one begins at %s: %s", point.run_id, point.path, error)
        return service.create_training_client_from_state_with_optimizer(point.path, **options)
    client.load_state_with_optimizer(point.path).result()
    return client
