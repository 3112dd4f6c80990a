"""A run's metrics on their way to Weights & Biases, off the threads that train and poll.

One thread takes records from a queue. A fault of wandb is said once and never disturbs training.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from farstep._meter import StepRecord
from farstep.errors import MissingExtraError
from farstep.types import WandbConfig

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("farstep")

FINISH_S = 60.0


def require_wandb() -> None:
    """Raises MissingExtraError where wandb is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("wandb_config needs wandb", hint="pip install 'farstep[wandb]'") from error


class WandbStream:
    """Ended by `finish`, which sends what is left."""

    def __init__(self, config: WandbConfig, *, run_config: Mapping[str, Any]) -> None:
        import wandb

        self._run: wandb.Run = wandb.init(
            project=config.project,
            name=config.name,
            entity=config.entity,
            group=config.group,
            tags=config.tags or None,
            mode=config.mode,
            dir=config.dir,
            config={**run_config, **config.config},
            reinit="create_new",  # several runs of one process are several runs there
        )
        # A loaded checkpoint may take the step back, which wandb's own counter refuses.
        self._run.define_metric("*", step_metric="step")
        self._records: queue.SimpleQueue[StepRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._log_all, name="farstep-wandb", daemon=True)
        self._thread.start()

    def put(self, record: StepRecord) -> None:
        """Returns at once."""
        self._records.put(record)

    def finish(self) -> None:
        self._records.put(None)
        self._thread.join(FINISH_S)
        self._run.finish()

    def _log_all(self) -> None:
        has_failed = False
        while (record := self._records.get()) is not None:
            try:
                self._run.log({"step": record.step, **record.metrics})
            except Exception as error:
                if not has_failed:
                    log.warning("wandb takes no metrics: %s", error)
                has_failed = True
