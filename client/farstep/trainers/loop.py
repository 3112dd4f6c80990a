"""`Loop`: how a trainer trains. Every method without an underscore may be overridden, and has hooks.

    train:  for epoch in self.epochs: self.epoch()
    epoch:  for batch in self.train_batches: self.step(batch)
    step:   passes → optimizer step → metrics, log, evaluation, checkpoint

The work of the next steps (`lookahead`) is submitted before a step is waited for, unless something may depend on that.
Batches are prepared ahead within an epoch, or also across its border (`crosses_epochs`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from farstep.trainers.checkpoints import CheckpointEngine
from farstep.trainers.errors import DataError
from farstep.trainers.exits import Exit
from farstep.trainers.gradients import Batch, Gradients, LossFunction
from farstep.trainers.hooks import hooked
from farstep.trainers.horizon import accumulated, chunks, num_steps
from farstep.trainers.lifecycle import TrainerState
from farstep.trainers.metrics import TrainMetrics
from farstep.trainers.ready import PreparedBatches, prepared
from farstep.trainers.sequence import TrainSequence
from farstep.trainers.step import PendingStep, Position, numbers

if TYPE_CHECKING:
    from farstep.sampling import SamplingClient


class Loop(Gradients):
    """Of a trainer."""

    crosses_epochs: ClassVar[bool] = False  # whether the next epoch's batches are begun before this one has ended

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_flight: list[PendingStep] = []
        self._num_finished = 0
        self._considered = 0  # the step at which evaluation and checkpoints were last thought of
        self._after_batch = Position()
        self._prepared: PreparedBatches[Batch] | None = None
        self._cancel_reason: str | None = None
        self._sampler: tuple[int, SamplingClient] | None = None
        self.engines_due: list[CheckpointEngine] | None = None

    # The loop

    @hooked
    def train(self) -> TrainMetrics | None:
        """Trains to the end; once, and only what was validated. One step on a batch is `step`.

        Returns:
            What the run came to. An override need not return it.
        """
        for _ in self.epochs:
            self.epoch()
        return None

    @hooked
    def epoch(self) -> None:
        """What is left of the present epoch."""
        is_own = "step" in self._overridden or self.hooks_of("pre", "step") or self.hooks_of("post", "step")
        pending: deque[PendingStep] = deque()
        for batch in self.train_batches:
            for is_last in self._passes_over(batch):
                if is_own:
                    self._own_step(batch, is_last=is_last)
                    continue
                pending.append(self._submit(batch, self.loss_fn, is_last=is_last))
                allowed = self.lookahead if self._may_look_ahead(pending[-1]) else 0
                while len(pending) > allowed:
                    self._finish(pending.popleft())
        while pending:
            self._finish(pending.popleft())

    @hooked
    def step(
        self,
        batch: Batch,
        loss_fn: str | LossFunction | None = None,
        *,
        mini_bs: int | None = None,
        gradient_accumulation_steps: int | None = None,
    ) -> dict[str, float]:
        """Trains on a batch: passes of `mini_bs` rows, one optimizer step for all of them.

        Args:
            batch: rows; as many as belong together follow each other (a pair: chosen, rejected).
            loss_fn: another loss than the trainer's own.
            mini_bs: rows of a pass; it changes no result.
            gradient_accumulation_steps: so many passes make an optimizer step; None: all of the batch.

        Returns:
            Flat metrics, after they were logged, and after the evaluation and checkpoint that were due.

        Raises:
            TrainerError: before `init`.
            DataError: the rows are not whole groups, or a size is none.
        """
        self._require_init("step")
        self.announce()
        for field, given in (("mini_bs", mini_bs), ("gradient_accumulation_steps", gradient_accumulation_steps)):
            if given is not None and given < 1:
                raise DataError(f"{given}, and at least 1 is needed", field=field)
        wanted = self.loss_fn if loss_fn is None else loss_fn
        return self._finish(self._submit(batch, wanted, mini_bs=mini_bs, accumulation=gradient_accumulation_steps))

    @hooked
    def evaluate(self, test_data: Any = None) -> TrainMetrics:
        """The loss on test data (those given here, or the trainer's), without a gradient; in any state.

        Returns:
            `loss`, `steps` (batches), and in `extra` the same as `eval/…` with what else the loss says. `accuracy`
            where the loss has one (preferences), else where there is a reward function to score answers.

        Raises:
            TrainerError: there are no data.
        """
        from farstep.trainers.evaluation import evaluate

        self.settle()
        return evaluate(self, test_data)

    @hooked
    def checkpoint(self) -> None:
        """Saves with every engine that is due (`engines_due`; called by hand: with all), and says so."""
        from farstep.trainers.saving import save

        self._require_init("checkpoint")
        due, self.engines_due = self.engines_due, None
        self.settle()
        step = self.global_step
        save(self, due if due is not None else [each for each in self.engines.all if not each.has_saved(step)])

    def settle(self) -> None:
        """Waits for steps that are under way and counts them: what one asks of the weights then is of `global_step`."""
        while self._in_flight:
            self._finish(self._in_flight[0])

    def sampling_client(self) -> SamplingClient:
        """A client of exactly the present weights; published when they have changed since the last call."""
        self._require_init("sampling_client")
        self.settle()
        if self._sampler is None or self._sampler[0] != self.global_step:
            self._close_sampler()
            self._sampler = (self.global_step, self.client.save_weights_and_get_sampling_client(pin="exact"))
        return self._sampler[1]

    def _close_sampler(self) -> None:
        if self._sampler is not None:
            self._sampler[1].close()
            self._sampler = None

    def _release(self) -> None:
        self._close_sampler()
        super()._release()

    # What it goes through

    @property
    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs that are left, from the present one on."""
        while self.position.epoch < self.horizon.epochs and not self.should_stop:
            epoch = self.position.epoch
            yield epoch
            if self.should_stop and self.position.batch < self.train_rows.num_batches:
                return
            self.position = Position(epoch + 1, 0)
            self._after_epoch(epoch + 1)

    @property
    def train_batches(self) -> Iterator[Batch]:
        """What is left of the present epoch, prepared; ends when the run is to end."""
        self._require_init("train_batches")
        self.announce()
        epoch, first = self.position.epoch, self.position.batch
        if self._prepared is None or self._prepared.place != self.position:
            self._prepared = PreparedBatches(self._placed_from(self.position), self.begin_batch, ahead=self.lookahead)
        for index, batch in enumerate(self._prepared.of_epoch(epoch), start=first):
            if self.should_stop:
                return
            self._after_batch = Position(epoch, index + 1)
            yield batch

    @property
    def eval_batches(self) -> Iterator[Batch]:
        """All batches of the evaluation, prepared."""
        self._require_init("eval_batches")
        if self.eval_rows is not None:
            yield from prepared(self.eval_rows.batches(0), self.begin_batch, ahead=1)

    def _placed_from(self, start: Position) -> Iterator[tuple[Position, Batch]]:
        """The batches of the run from a place on: of its epoch, or through all epochs (`crosses_epochs`)."""
        last = max(self.horizon.epochs, start.epoch + 1) if self.crosses_epochs else start.epoch + 1
        for epoch in range(start.epoch, last):
            first = start.batch if epoch == start.epoch else 0
            for index, batch in enumerate(self.train_rows.batches(epoch, first), start=first):
                yield Position(epoch, index), batch

    def begin_batch(self, batch: Batch) -> Callable[[], Batch]:
        """Begins to prepare a batch, and gives what ends it: work on the server is submitted here, awaited there."""
        return lambda: self.prepare(batch)

    def prepare(self, batch: Batch) -> Batch:
        """The rows that are trained on, from those of the data."""
        return batch

    # When it ends

    @property
    def should_stop(self) -> bool:
        """Asked before each step; `exit` then says why."""
        if self.exit is None and self._cancel_reason is not None:
            self.exit = Exit(self._cancel_reason, is_cancelled=True)
        if self.exit is None:
            made = self.global_step_this_run + self._under_way
            self.exit = self.limits.reached(step=self._submitted, steps_this_run=made)
        return self.exit is not None

    def cancel(self, reason: str = "cancelled") -> None:
        """Ends the run at the next step boundary, with a checkpoint; from any thread or callback."""
        self._cancel_reason = reason

    # The parts of a step

    def _passes_over(self, batch: Batch) -> Iterator[bool]:
        """For each pass over a batch whether it is the last: there are fewer where `max_steps` ends the run."""
        config, passes = self.config, self.passes
        steps = num_steps(
            len(batch),
            mini_bs=config.mini_bs,
            rows_per_group=self.rows_per_group,
            accumulation=config.gradient_accumulation_steps,
        )
        for number in range(passes):
            is_end = config.max_steps is not None and self._submitted + steps >= config.max_steps
            yield is_end or number == passes - 1
            if is_end:
                return

    def _submit(
        self,
        batch: Batch,
        loss_fn: str | LossFunction,
        *,
        mini_bs: int | None = None,
        accumulation: int | None = None,
        is_last: bool = True,
    ) -> PendingStep:
        """Everything that a batch makes, under way."""
        config = self.config
        before = self._submitted
        parts = chunks(checked_batch(batch), mini_bs or config.mini_bs, rows_per_group=self.rows_per_group)
        groups = accumulated(parts, accumulation or config.gradient_accumulation_steps)
        if config.max_steps is not None and self.state is TrainerState.TRAINING:
            groups = groups[: max(1, config.max_steps - before)]
        submit = self._submit_open if self._is_open(loss_fn) else self._submit_named
        updates = [submit(group, loss_fn) for group in groups]
        after = self._after_batch if is_last else self.position
        pending = PendingStep(updates, after, before, is_last)
        self._in_flight.append(pending)
        return pending

    def _may_look_ahead(self, pending: PendingStep) -> bool:
        """Whether the next step may be submitted before this one is done: nothing comes between that depends on it."""
        step = pending.before + len(pending.updates)
        return not self._is_evaluation_due(self._due_from, step) and not any(
            engine.is_due(before=self._due_from, step=step) for engine in self.engines.all
        )

    @property
    def _due_from(self) -> int:
        return max(self._considered, self.global_step - self.global_step_this_run)

    def _finish(self, pending: PendingStep) -> dict[str, float]:
        """Counts a step when it is done, and all that it brings with it; one that was counted already is left alone."""
        if pending not in self._in_flight:
            return dict(self.metrics)
        metrics = pending.result()
        self._in_flight.remove(pending)
        self._count_updates(len(pending.updates))
        self.position = pending.after
        self._num_finished += 1
        self.batches.saw(self.global_step, pending.updates)
        return self._after_step(metrics, is_last=pending.is_last)

    def _own_step(self, batch: Batch, *, is_last: bool) -> None:
        """A step that somebody else wrote: it may have gone through ours, or not."""
        finished, after = self._num_finished, self._after_batch
        returned = self.step(batch)
        if is_last:
            self.position = after
        if self._num_finished == finished:
            self._after_step(numbers(returned), is_last=is_last)

    def _after_step(self, metrics: dict[str, float], *, is_last: bool) -> dict[str, float]:
        """Reports; then evaluates and saves what is due."""
        metrics = self.report_step(metrics)
        if not is_last:
            return metrics
        before, self._considered = self._due_from, self.global_step
        if self._is_evaluation_due(before, self.global_step):
            self.evaluate()
        self.save_due([each for each in self.engines.all if each.is_due(before=before, step=self.global_step)])
        self.pace.pause()
        return metrics

    def _after_epoch(self, epochs_done: int) -> None:
        step = self.global_step
        if self.global_step_this_run:
            engines = self.engines.all
            self.save_due([each for each in engines if each.is_due(before=step, step=step, epochs_done=epochs_done)])

    def save_due(self, engines: list[CheckpointEngine]) -> None:
        """A checkpoint with these, if any."""
        if engines:
            self.engines_due = engines
            self.checkpoint()

    def _is_evaluation_due(self, before: int, step: int) -> bool:
        every = self.config.eval_interval
        return bool(every) and self.eval_rows is not None and step // every > before // every


def checked_batch(batch: object) -> Batch:
    """Raises TypeError where it is not a list of rows."""
    if not isinstance(batch, list | tuple):
        raise TypeError(f"batch: must be a list of TrainSequence, not {type(batch).__name__}")
    for index, row in enumerate(batch):
        if not isinstance(row, TrainSequence):
            raise TypeError(f"batch[{index}]: must be a TrainSequence, not {type(row).__name__}")
    return list(batch)
