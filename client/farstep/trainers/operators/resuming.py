"""Where an operator trainer goes on: which of its files, and whether what is in it can be gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.operators.checkpoint_files import CheckpointFiles

if TYPE_CHECKING:
    from farstep.trainers.operators.config import OperatorConfig

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "run_id": str,
    "global_step": int,
    "data": str,
    "operators": dict,
    "optimizers": list,
    "best": dict,
    "num_questions": int,
    "rng": dict,
    "early_stopping": dict,
    "trackers": dict,
}


def find_state(files: CheckpointFiles, config: OperatorConfig) -> dict[str, Any] | None:
    """What to go on from, as the configuration says; None: a fresh start, also where the file is not there.

    Raises:
        TrainerError: it is there and cannot be read.
    """
    if (named := config.operators.resume_from) is not None:
        path = Path(named).expanduser()
        if path.suffix == ".json":
            return CheckpointFiles(path.parent).load(path.name)
        return CheckpointFiles(path).latest()
    if any(one.auto_resume and one.enabled for one in config.checkpoint):
        return files.latest()
    return None


def check_state(state: Mapping[str, Any], *, trainer: str, num_optimizers: int) -> None:
    """Raises TrainerError where something is missing, or it is another trainer's."""
    if state.get("trainer") != trainer:
        raise TrainerError(f"the checkpoint is of the trainer {state.get('trainer')!r}", field="resume_from",
                           stage="init")  # fmt: skip
    for name, kind in _KINDS.items():
        if not isinstance(state.get(name), kind):
            raise TrainerError(f"the checkpoint is damaged: {name!r} is {state.get(name, 'missing')!r}",
                               field="resume_from", stage="init")  # fmt: skip
    if not {"epoch", "accuracy", "operators"} <= state["best"].keys():
        raise TrainerError("the checkpoint is damaged: 'best' is not whole", field="resume_from", stage="init")
    if len(state["optimizers"]) != num_optimizers:
        raise TrainerError(f"the checkpoint is of {len(state['optimizers'])} optimizers, and there are "
                           f"{num_optimizers}", field="optimizer", stage="init")  # fmt: skip
