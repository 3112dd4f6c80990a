"""Raw rows become a table of sequences: renamed, understood, tokenised, fitted, counted. In one process or several.

Invariant: the table and the report are the same, however many processes made them.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from farstep.trainers.config.data import DataConfig
from farstep.trainers.data.adapters.base import Limits, NothingToTrain, RowAdapter, adapter_for
from farstep.trainers.data.collection import RawRow, RawRows
from farstep.trainers.data.joining import joined
from farstep.trainers.data.report import DataReport
from farstep.trainers.data.table import Table
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same for all rows. `rows_per_group`: what the trainer takes, 2 for pairs."""

    config: DataConfig
    limits: Limits
    rows_per_group: int = 1


def processed(
    raw: RawRows, tokenizer: PreTrainedTokenizerBase, plan: Plan, *, progress: Progress | None = None
) -> tuple[Table, DataReport]:
    """
    Args:
        progress: called with rows done and rows in all, after every few hundred.

    Raises:
        DataError: a row cannot be understood; says which, why, and the keys that it has.
    """
    report = DataReport()
    parts: list[Table] = []
    done = 0
    for part, counts in _chunks(raw, tokenizer, plan):
        parts.append(part)
        report.add(counts)
        done = min(done + CHUNK_ROWS, len(raw))
        if progress is not None:
            progress(done, len(raw))
    table = Table.joined(parts)
    if plan.config.join_texts and plan.limits.max_length is not None:
        rows = list(joined(map(table.__getitem__, range(len(table))), plan.limits.max_length, report))
        table = Table.of(rows, [(-1, -1)] * len(rows))
    report.sequences, report.tokens = len(table), int(table.starts[-1])
    firsts = table.mask[table.starts[:-1]] != 0 if len(table) else table.mask
    report.targets = int((table.mask != 0).sum() - firsts.sum())
    report.longest = max((table.starts[1:] - table.starts[:-1]).tolist(), default=0)
    return table, report


def _chunks(raw: RawRows, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> Iterator[tuple[Table, DataReport]]:
    starts = range(0, len(raw), CHUNK_ROWS)
    chunks = ([raw[i] for i in range(start, min(start + CHUNK_ROWS, len(raw)))] for start in starts)
    own = own_adapters(plan.config.format, *(reading.format for reading in raw.readings))
    num_proc = min(plan.config.num_proc, len(starts))
    if num_proc > 1 and (stuck := [adapter for adapter in own if not _can_be_sent(adapter)]):
        text = f"data.num_proc is left aside: the row adapter {stuck[0].name!r} is in no module that can be imported"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        num_proc = 1
    if num_proc <= 1:
        yield from (_chunk(chunk, tokenizer, plan) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    sent = replace(plan, config=plan.config.model_copy(update={"sources": (), "eval_sources": ()}))
    with ProcessPoolExecutor(num_proc, context, _begin, (tokenizer, sent, own)) as pool:
        try:
            yield from _in_order(pool, chunks, 2 * num_proc)
        except BrokenProcessPool as error:
            hint = (
                "a script that sets num_proc must do its work under if __name__ == '__main__'; or it ran out of memory"
            )
            raise DataError("a process that makes tokens has died", field="data.num_proc", hint=hint) from error


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[list[RawRow]], most_waiting: int
) -> Iterator[tuple[Table, DataReport]]:
    waiting: deque[Future[tuple[Table, DataReport]]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_chunk_there, chunk))
        if len(waiting) > most_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_there: dict[str, Any] = {}


def own_adapters(*formats: str | None) -> tuple[type[RowAdapter], ...]:
    """Adapters of the user's among those that are named: another process learns of them by being sent them."""
    return tuple(
        RowAdapter.get(name) for name in sorted({name for name in formats if name}) if name not in RowAdapter.homes
    )


def _can_be_sent(adapter: type[RowAdapter]) -> bool:
    return adapter.__module__ != "__main__" and "<locals>" not in adapter.__qualname__


def _begin(tokenizer: PreTrainedTokenizerBase, plan: Plan, own: tuple[type[RowAdapter], ...]) -> None:
    _there.update(tokenizer=tokenizer, plan=plan)


def _chunk_there(chunk: Sequence[RawRow]) -> tuple[Table, DataReport]:
    return _chunk(chunk, _there["tokenizer"], _there["plan"])


def _chunk(chunk: Sequence[RawRow], tokenizer: PreTrainedTokenizerBase, plan: Plan) -> tuple[Table, DataReport]:
    report = DataReport()
    sequences: list[TrainSequence] = []
    origins: list[tuple[int, int]] = []
    for raw in chunk:
        counts = DataReport(rows=1)
        kept = sequences_of(raw, tokenizer, plan, counts)
        sequences += kept
        origins += [(raw.source_index, raw.row_index)] * len(kept)
        report.add(counts)
    return Table.of(sequences, origins), report


def sequences_of(
    raw: RawRow, tokenizer: PreTrainedTokenizerBase, plan: Plan, counts: DataReport
) -> list[TrainSequence]:
    """One row's sequences, and what became of it in `counts`: it is used, or dropped for one reason.

    Raises:
        DataError: it cannot be understood.
    """
    row = raw.named()
    try:
        adapter = adapter_for(row, raw.reading.format or plan.config.format)
        adapter.check(row)
        _check_group(adapter, plan)
        made = adapter.to_sequences(row, tokenizer, plan.config)
        kept = adapter.fitted(made, plan.limits, plan.config, counts)
    except NothingToTrain:
        counts.dropped_no_targets = 1
        return []
    except DataError as error:
        raise raw.blamed(error) from error
    if kept:
        counts.used = 1
        counts.dropped_turns = counts.dropped_no_targets + counts.dropped_too_long
        counts.dropped_no_targets = counts.dropped_too_long = 0
    elif counts.dropped_too_long:
        counts.dropped_too_long, counts.dropped_no_targets = 1, 0
    else:
        counts.dropped_no_targets = 1
    counts.retokenized += sum("retokenized" in sequence.metadata for sequence in kept)
    counts.split_turns += sum("split" in sequence.metadata for sequence in kept)
    return kept


def _check_group(adapter: RowAdapter, plan: Plan) -> None:
    if adapter.rows_per_group == plan.rows_per_group:
        return
    if adapter.rows_per_group == 2:
        raise DataError(
            "a pair of chosen and rejected, and this trainer takes single rows",
            hint="type: dpo takes pairs; columns: {messages: chosen} with format: messages trains the chosen ones",
        )
    raise DataError(f"a row of the form {adapter.name!r}, and this trainer takes chosen and rejected")
