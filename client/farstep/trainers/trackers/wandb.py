"""Metrics to Weights & Biases; offline without a network. A resumed run goes on under the same id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from farstep.errors import MissingExtraError
from farstep.trainers.trackers.base import TrackedRun, Tracker

if TYPE_CHECKING:
    import wandb


class WandbTracker(Tracker):
    name = "wandb"

    @classmethod
    def require(cls) -> None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("the tracker wandb needs wandb", hint="pip install 'farstep[wandb]'") from error

    def start(self, run: TrackedRun) -> str:
        import wandb

        given = run.settings
        directory = given.get("dir") or str(run.output_dir)
        run.output_dir.mkdir(parents=True, exist_ok=True)
        self._run: wandb.Run = wandb.init(
            project=given.get("project") or "farstep",
            entity=given.get("entity"),
            name=given.get("run_name") or run.name,
            group=given.get("group"),
            tags=list(given.get("tags") or ()) or None,
            mode=given.get("mode"),
            dir=directory,
            config=dict(run.config),
            id=run.resume_id or None,
            resume="allow" if run.resume_id else None,
            reinit="create_new",  # several runs of one process are several runs there
            **given.get("kwargs", {}),
        )
        self._run.define_metric("*", step_metric="step")  # its own counter refuses to go back after a resumption
        return str(self._run.id)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step, **metrics})

    def finish(self, state: str) -> None:
        self._run.finish(exit_code=int(state == "failed"))
