"""One run of a trainer: from validated to its end, with the events and checkpoints that belong to that.

It is around `train`, whoever wrote it; `train` itself is only the loop.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farstep.errors import RemoteOpError
from farstep.trainers.errors import TrainerError
from farstep.trainers.lifecycle import TrainerState
from farstep.trainers.metrics import TrainMetrics
from farstep.trainers.saving import save

if TYPE_CHECKING:
    from farstep.trainers.trainer import Trainer

log = logging.getLogger("farstep")


def managed(train: Callable[[Any], TrainMetrics | None]) -> Callable[..., TrainMetrics]:
    """A trainer's `train`, with a run around it; called by an override through `super()`, the loop alone."""

    @functools.wraps(train)
    def call(self: Trainer, /, *args: Any, **kwargs: Any) -> TrainMetrics:
        if args or kwargs:
            raise TypeError("train() is the whole run and takes no arguments; step(batch, loss_fn) trains on a batch")
        if self._is_training:
            return train(self)  # type: ignore[return-value]
        return _run(self, train)

    return call


def _run(trainer: Trainer, train: Callable[[Any], TrainMetrics | None]) -> TrainMetrics:
    trainer._lifecycle.begin()
    trainer._is_training = True
    try:
        trainer.ensure_init("train")
        trainer.announce()
        train(trainer)
        trainer.log_metrics()
        save_at_end(trainer)
    except KeyboardInterrupt:
        has_been_asked = trainer._cancel_reason is not None
        trainer.cancel("interrupted from the keyboard")
        assert trainer.should_stop  # for that reason, from here on
        if not has_been_asked:  # whoever does not wait for the end of a step that is to be the last wants no checkpoint
            _save_anyhow(trainer)
        end(trainer, TrainerState.CANCELLED, quietly=True)
        raise
    except BaseException as error:
        end(trainer, TrainerState.FAILED, error=error, quietly=True)
        if not isinstance(error, Exception):
            raise
        raise _explained(trainer, error) from error
    finally:
        trainer._is_training = False
    is_cancelled = trainer.exit is not None and trainer.exit.is_cancelled
    end(trainer, TrainerState.CANCELLED if is_cancelled else TrainerState.COMPLETED)
    return trainer.result


def save_at_end(trainer: Trainer) -> None:
    """What is to be kept of the end; nothing where this run made no step."""
    if not trainer.global_step_this_run:
        return
    step, is_early = trainer.global_step, trainer.early_stop
    trainer.save_due([each for each in trainer.engines.all if each.is_due_at_end(step=step, is_early=is_early)])


def end(trainer: Trainer, state: TrainerState, *, error: BaseException | None = None, quietly: bool = False) -> None:
    """The last event, and the state. `quietly`: a callback that fails is a line in the log, another error is raised."""
    if trainer.state is TrainerState.TRAINING:
        trainer._lifecycle.end(state)
    if not hasattr(trainer, "events") or trainer.events.has_ended:
        return
    if trainer._is_initialized:
        trainer.progress.close()
        trainer.batches.flush()
    facts: dict[str, Any] = {"step": trainer.global_step, "reason": trainer.early_stop_reason}
    if not trainer._has_announced:
        facts |= trainer.identity()
    if error is not None:
        facts |= {"error": str(error), "error_class": type(error).__name__}
    else:
        facts |= {"metrics": trainer.result.extra}
    try:
        trainer.emit(str(state), **facts)
    except Exception as failure:
        if not quietly:
            raise
        log.warning("a callback fails at the end of the run: %s: %s", type(failure).__name__, failure)
    finally:
        _report(trainer)


def _report(trainer: Trainer) -> None:
    """The page about the run; a run is no worse for not having one."""
    if not (hasattr(trainer, "folder") and trainer.folder.is_held and trainer.config.report):
        return
    try:
        from farstep.trainers.report import write_report

        write_report(trainer.folder.path)
    except Exception as error:
        log.warning("no report of the run: %s: %s", type(error).__name__, error)


def _save_anyhow(trainer: Trainer) -> None:
    """Of a run that is broken off: where it works, it is gone on with from here."""
    try:
        trainer.settle()
        if trainer.global_step_this_run:
            step = trainer.global_step
            save(trainer, [each for each in trainer.engines.all if each.is_due_at_end(step=step, is_early=True)])
    except Exception as error:
        log.warning("no checkpoint at the end: %s: %s", type(error).__name__, error)


def _explained(trainer: Trainer, error: Exception) -> TrainerError:
    if isinstance(error, TrainerError):
        return TrainerError(error.message, hint=error.hint, field=error.field, stage=error.stage)
    hint = ""
    if isinstance(error, RemoteOpError) and "OutOfMemory" in error.error_class:
        config = trainer.config
        hint = (
            f"lower mini_bs (now {config.mini_bs or config.batch_size}), data.max_length "
            f"({config.data.max_length or 'the model’s own limit'}) or model.lora.r ({config.model.lora.r})"
        )
    if not trainer._is_initialized:
        return TrainerError(f"the run could not begin: {type(error).__name__}: {error}", stage="init")
    step = trainer.global_step
    return TrainerError(f"training failed after step {step}: {type(error).__name__}: {error}", hint=hint, stage="train")
