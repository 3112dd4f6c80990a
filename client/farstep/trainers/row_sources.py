"""Where a trainer's rows come from: sequences that are there already, or rows that the data part makes tokens of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.rows import Rows, SequenceRows
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from farstep.trainers.session import Session


def train_rows(trainer: Session, given: Any) -> Rows:
    """Raises TrainerError where nothing is left to train on."""
    rows = _rows(trainer, given, is_eval=False)
    if rows is None or not len(rows):
        raise TrainerError("no row is left to train on", field="train_data", stage="init")
    return rows


def eval_rows(trainer: Session, given: Any) -> Rows | None:
    """None where there is nothing to evaluate on."""
    return _rows(trainer, given, is_eval=True)


def _rows(trainer: Session, given: Any, *, is_eval: bool) -> Rows | None:
    if given is None:
        return None
    config = trainer.config
    if given and not all(isinstance(row, TrainSequence | list | tuple) for row in given):
        raise TrainerError("only TrainSequences yet", stage="init")
    return SequenceRows(
        examples_of(given, trainer.rows_per_group),
        batch_size=config.batch_size,
        seed=config.data.seed if config.data.seed is not None else config.seed,
        shuffle=config.data.shuffle and not is_eval,
        drop_last=config.data.drop_last and not is_eval,
    )


def examples_of(rows: Sequence[Any], rows_per_group: int) -> list[list[TrainSequence]]:
    """Sequences by example: as they are grouped, or so many that follow each other.

    Raises:
        TrainerError: they are not whole groups.
    """
    if all(isinstance(row, list | tuple) for row in rows):
        examples = [list(row) for row in rows]
    else:
        if len(rows) % rows_per_group:
            raise TrainerError(f"{len(rows)} rows are not whole groups of {rows_per_group}", field="train_data",
                               stage="validate")  # fmt: skip
        examples = [list(rows[i : i + rows_per_group]) for i in range(0, len(rows), rows_per_group)]
    for index, example in enumerate(examples):
        if len(example) % rows_per_group:
            raise TrainerError(f"{len(example)} sequences, not {rows_per_group}", field=f"train_data[{index}]",
                               stage="validate")  # fmt: skip
    return examples
