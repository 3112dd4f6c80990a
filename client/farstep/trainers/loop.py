"""`Loop`: how a trainer trains. Every method without an underscore may be overridden, and has hooks.

    train:  for epoch in self.epochs: self.epoch()
    epoch:  for batch in self.train_batches: self.step(batch)
    step:   passes → optimizer step → metrics, log, evaluation, checkpoint

With a named loss a step is one pass. Where `loss`, `forward` or `backward` is overridden or hooked, or the loss is a
function, log-probabilities come here first (`farstep.trainers.own_loss`). A step's work is submitted before the one
before it is waited for, unless something may depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from farstep.errors import InvalidInputError
from farstep.future import Future
from farstep.results import ForwardBackwardOutput
from farstep.trainers.checkpoints import CheckpointEngine
from farstep.trainers.exits import Exit
from farstep.trainers.hooks import hooked
from farstep.trainers.horizon import accumulated, chunks
from farstep.trainers.lifecycle import TrainerState
from farstep.trainers.metrics import TrainMetrics, joined
from farstep.trainers.own_loss import Part, Tape, checked_loss, import_torch, leaf_logprobs, weighted_data
from farstep.trainers.ready import PreparedBatches
from farstep.trainers.sequence import TrainSequence
from farstep.trainers.session import Session
from farstep.trainers.step import OwnLoss, PendingStep, PendingUpdate, Position, numbers
from farstep.types import AdamParams, Datum

if TYPE_CHECKING:
    import torch

Batch = list[TrainSequence]
LossFunction = Callable[..., Any]
_OPEN = ("loss", "forward", "backward")


class Loop(Session):
    """Of a trainer.

    `loss_fn` is a named loss, or a function of (batch, log-probabilities [T] of each row) that gives a loss or a loss
    and metrics. `loss_inputs` are the per-token fields of a row that the named loss takes.
    """

    loss_fn: ClassVar[str | LossFunction] = "cross_entropy"
    loss_inputs: ClassVar[Sequence[str]] = ()
    _overridden: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._active_hooks: set[str] = set()
        self._tape = Tape()
        self._present_loss: str | LossFunction = self.loss_fn
        self._own_metrics: dict[str, float] = {}
        self._submitted = 0  # optimizer steps, with those under way
        self._num_finished = 0
        self._due_from = 0  # the step at which evaluation and checkpoints were last considered
        self._after_batch = Position()
        self._cancel_reason: str | None = None
        self.engines_due: list[CheckpointEngine] = []

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
        pending: PendingStep | None = None
        for batch in self.train_batches:
            for number in range(self.passes):
                is_last = number == self.passes - 1
                if is_own:
                    self._own_step(batch, is_last=is_last)
                    continue
                following = self._submit(batch, self.loss_fn, is_last=is_last)
                if pending is not None:
                    self._finish(pending)
                pending = following
                if not self._may_look_ahead(pending):
                    self._finish(pending)
                    pending = None
        if pending is not None:
            self._finish(pending)

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
            DataError: the rows are not whole groups.
        """
        self._require_init("step")
        self.announce()
        wanted = self.loss_fn if loss_fn is None else loss_fn
        return self._finish(self._submit(batch, wanted, mini_bs=mini_bs, accumulation=gradient_accumulation_steps))

    @hooked
    def loss(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch: a scalar tensor that depends on what `forward` gave. Here: the trainer's own loss.

        The named loss is one number from the worker; what is added to it or multiplied with it counts in the gradient.
        """
        loss_fn = self._present_loss
        if not callable(loss_fn):
            return self._named_loss(batch, loss_fn)
        result = loss_fn(batch, self.forward(batch))
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        self._own_metrics = {str(name): float(value) for name, value in metrics.items()}
        return loss  # type: ignore[no-any-return]

    @hooked
    def forward(self, batch: Batch) -> list[torch.Tensor]:
        """Log-probabilities of the tokens of each row, from the worker: leaf tensors [T], 0 where `loss_mask` is 0."""
        self._require_init("forward")
        import_torch()
        parts = chunks(batch, self.config.mini_bs)
        passes = [self.client.forward([row.to_datum(weights=False) for row in part]) for part in parts]
        leaves = leaf_logprobs(batch, [each.result() for each in passes])

        def submit(leaves: list[torch.Tensor]) -> list[Future[ForwardBackwardOutput]]:
            data = weighted_data(batch, leaves)
            return [self.client.forward_backward(part) for part in chunks(data, self.config.mini_bs)]

        self._tape.add(Part(leaves, submit))
        return leaves

    @hooked
    def backward(self, loss: torch.Tensor) -> None:
        """Differentiates the loss by what `forward` gave, and has the worker add the gradient to the run's."""
        self._tape.backward(loss)

    def optim_step(self) -> dict[str, float]:
        """An optimizer step on what `backward` added, for a `step` of one's own: it counts, `step` reports."""
        self._require_init("optim_step")
        tape, self._tape = self._tape, Tape()
        metrics = self._update(tape.passes, [], None).result()
        self.global_step += 1
        self.global_step_this_run += 1
        return metrics

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

        return evaluate(self, test_data)

    @hooked
    def checkpoint(self) -> None:
        """Saves with every engine that is due (`engines_due`), and says so."""
        from farstep.trainers.saving import save

        save(self, self.engines_due)

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
        prepared = PreparedBatches(self.train_rows.batches(epoch, first), self.begin_batch, ahead=int(self.lookahead))
        for index, batch in enumerate(prepared, start=first):
            if self.should_stop:
                return
            self._after_batch = Position(epoch, index + 1)
            yield batch

    @property
    def eval_batches(self) -> Iterator[Batch]:
        """All batches of the evaluation, prepared."""
        self._require_init("eval_batches")
        if self.eval_rows is not None:
            yield from PreparedBatches(self.eval_rows.batches(0), self.begin_batch, ahead=1)

    def begin_batch(self, batch: Batch) -> Callable[[], Batch]:
        """Begins to prepare a batch, and gives what ends it: work on the server is submitted here, awaited there."""
        return lambda: self.prepare(batch)

    def prepare(self, batch: Batch) -> Batch:
        """The rows that are trained on, from those of the data."""
        return batch

    # What a loss needs

    def loss_config(self) -> Mapping[str, float]:
        """Settings of the named loss."""
        return {}

    def normalizer(self, batch: Sequence[TrainSequence]) -> float:
        """What the sum over the rows of an optimizer step is divided by: here the weight of its tokens, for a mean."""
        return sum(row.weight for row in batch) or 1.0

    def adam_params(self, step: int) -> AdamParams:
        """Settings of optimizer step number `step`, counted from 0."""
        wanted = self.config.optimizer
        return AdamParams(
            learning_rate=wanted.lr * self.schedule(step),
            beta1=wanted.betas[0],
            beta2=wanted.betas[1],
            eps=wanted.eps,
            weight_decay=wanted.weight_decay,
            grad_clip_norm=wanted.grad_clip,
        )

    # When it ends

    @property
    def should_stop(self) -> bool:
        """Asked before each step; `exit` then says why."""
        if self.exit is None and self._cancel_reason is not None:
            self.exit = Exit(self._cancel_reason, is_cancelled=True)
        if self.exit is None:
            made = self._submitted - self.global_step  # under way
            self.exit = self.limits.reached(step=self._submitted, steps_this_run=self.global_step_this_run + made)
        return self.exit is not None

    def cancel(self, reason: str = "cancelled") -> None:
        """Ends the run at the next step boundary, with a checkpoint; from any thread or callback."""
        self._cancel_reason = reason

    # The parts of a step

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
        return PendingStep(updates, after, before, is_last)

    def _submit_named(self, group: list[Batch], loss_fn: Any) -> PendingUpdate:
        rows = [row for part in group for row in part]
        settings = {**self.loss_config(), "normalizer": self.normalizer(rows)}
        passes = [self.client.forward_backward(self._data(part), loss_fn, settings) for part in group]
        return self._update(passes, rows, None)

    def _submit_open(self, group: list[Batch], loss_fn: str | LossFunction) -> PendingUpdate:
        rows = [row for part in group for row in part]
        self._tape, self._present_loss, self._own_metrics = Tape(), loss_fn, {}
        loss = self.loss(rows)
        own = OwnLoss(checked_loss(loss), self._own_metrics)
        self.backward(loss)
        tape, self._tape, self._present_loss = self._tape, Tape(), self.loss_fn
        return self._update(tape.passes, rows, own)

    def _update(
        self, passes: Sequence[Future[ForwardBackwardOutput]], rows: Batch, own: OwnLoss | None
    ) -> PendingUpdate:
        params = self.adam_params(self._submitted)
        update = PendingUpdate(params.learning_rate, passes, self.client.optim_step(params), rows, own)
        self._submitted += 1
        return update

    def _data(self, rows: Batch) -> list[Datum]:
        return [row.to_datum(*self.loss_inputs) for row in rows]

    def _named_loss(self, batch: Batch, loss_fn: str) -> torch.Tensor:
        torch = import_torch()
        normalizer = self.normalizer(batch)
        parts = [self._data(part) for part in chunks(batch, self.config.mini_bs, rows_per_group=self.rows_per_group)]

        def settings(scale: float) -> dict[str, float]:
            return {**self.loss_config(), "normalizer": normalizer / scale}

        passes = [self.client.forward(part, loss_fn, settings(1.0)) for part in parts]
        metrics = joined([dict(each.result().metrics) for each in passes])
        leaf = torch.tensor(metrics.pop("loss"), dtype=torch.float64, requires_grad=True)
        self._own_metrics.update(metrics)

        def submit(leaves: list[torch.Tensor]) -> list[Future[ForwardBackwardOutput]]:
            scale = float(leaves[0].grad.item())  # type: ignore[union-attr]
            if scale < 0:
                raise InvalidInputError("a named loss cannot be trained upwards", field="loss",
                                        hint="make it of self.forward(batch) instead")  # fmt: skip
            return [self.client.forward_backward(part, loss_fn, settings(scale)) for part in parts] if scale else []

        self._tape.add(Part([leaf], submit))
        return leaf  # type: ignore[no-any-return]

    def _is_open(self, loss_fn: str | LossFunction) -> bool:
        return (
            callable(loss_fn)
            or bool(self._overridden.intersection(_OPEN))
            or any(self.hooks_of(when, name) for when in ("pre", "post") for name in _OPEN)
        )

    def _may_look_ahead(self, pending: PendingStep) -> bool:
        """Whether the next step may be submitted before this one is done: nothing comes between that depends on it."""
        step = pending.before + len(pending.updates)
        return (
            self.lookahead
            and not self._is_evaluation_due(self._due_from, step)
            and not any(engine.is_due(before=self._due_from, step=step) for engine in self.engines.all)
        )

    def _finish(self, pending: PendingStep) -> dict[str, float]:
        metrics = pending.result()
        self.global_step += len(pending.updates)
        self.global_step_this_run += len(pending.updates)
        self.position = pending.after
        self._num_finished += 1
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
        before, self._due_from = self._due_from, self.global_step
        if self._is_evaluation_due(before, self.global_step):
            self.evaluate()
        self.engines_due = [each for each in self.engines.all if each.is_due(before=before, step=self.global_step)]
        if self.engines_due:
            self.checkpoint()
        self.pace.pause()
        return metrics

    def _after_epoch(self, epochs_done: int) -> None:
        step = self.global_step
        self.engines_due = [
            each for each in self.engines.all if each.is_due(before=step, step=step, epochs_done=epochs_done)
        ]
        if self.engines_due and self.global_step_this_run:
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
