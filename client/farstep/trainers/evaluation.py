"""An evaluation: the loss on data that are not trained on, all passes under way before the first is waited for.

It touches no gradient, and no state but what is reported. Without a scorer there is no accuracy: a data set is never
scored against itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from farstep.future import Future
from farstep.results import ForwardBackwardOutput
from farstep.trainers.completions import sample_completions, scored
from farstep.trainers.errors import TrainerError
from farstep.trainers.horizon import chunks
from farstep.trainers.metrics import TrainMetrics, joined, prefixed
from farstep.trainers.own_loss import Tape
from farstep.trainers.ready import prepared
from farstep.trainers.row_sources import eval_rows

if TYPE_CHECKING:
    from farstep.trainers.loop import Loop

IN_FLIGHT = 8


def evaluate(trainer: Loop, test_data: Any) -> TrainMetrics:
    """As `Loop.evaluate`."""
    trainer.ensure_init("evaluate")
    rows = eval_rows(trainer, test_data) if test_data is not None else trainer.eval_rows
    if rows is None:
        raise TrainerError("there is nothing to evaluate on", stage="evaluate",
                           hint="give test_data here or to the constructor, or data.eval_sources")  # fmt: skip
    batches = prepared(rows.batches(0), trainer.begin_batch, ahead=1)
    num_batches = rows.num_batches
    metrics = _named(trainer, batches) if not trainer.has_own_loss else _own(trainer, batches)
    completions = sample_completions(trainer, rows)
    if completions:
        metrics |= scored(trainer, completions)
    found = prefixed(metrics, "eval") if num_batches else {}
    result = TrainMetrics(metrics.get("loss", math.nan), metrics.get("accuracy"), num_batches, found)
    trainer.report_evaluation(result, [each.shown() for each in completions])
    return result


def _named(trainer: Loop, batches: Iterator[Any]) -> dict[str, float]:
    """Of a named loss: the mean over everything, however it was cut."""
    loss_fn, group = trainer.named_loss, trainer.rows_per_group
    under_way: deque[Future[ForwardBackwardOutput]] = deque()
    parts: list[Mapping[str, float]] = []
    total = 0.0
    for batch in batches:
        total += trainer.normalizer(batch)
        for part in chunks(batch, trainer.config.mini_bs, rows_per_group=group):
            data = [row.to_datum(*trainer.loss_inputs) for row in part]
            under_way.append(trainer.client.forward(data, loss_fn, dict(trainer.loss_config())))
        while len(under_way) > IN_FLIGHT:
            parts.append(under_way.popleft().result().metrics)
    parts += [each.result().metrics for each in under_way]
    if not parts:
        return {}
    metrics = joined(parts)
    return metrics | {"loss": metrics["loss"] / total}


def _own(trainer: Loop, batches: Iterator[Any]) -> dict[str, float]:
    """Of a loss of one's own: the mean over batches, by their weight."""
    total, weight = 0.0, 0.0
    tape, trainer._tape = trainer._tape, Tape()
    try:
        for batch in batches:
            share = trainer.normalizer(batch)
            total += float(trainer.loss(batch).item()) * share
            weight += share
            trainer._tape = Tape()
    finally:
        trainer._tape = tape
    return {"loss": total / weight} if weight else {}
