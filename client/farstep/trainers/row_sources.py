"""Where a trainer's rows come from: sequences that are there already, or rows that the data part makes tokens of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from farstep.trainers.errors import DataError, TrainerError
from farstep.trainers.rows import LoadedRows, NoRows, Rows, given_examples
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from farstep.trainers.checked import Checked
    from farstep.trainers.config.data import DataConfig
    from farstep.trainers.data.dataset import Dataset, Examples
    from farstep.trainers.session import Session


def check_sources(trainer: Checked) -> None:
    """Reads the configuration's sources, and whether their rows are of a form: before anything is paid for.

    Raises:
        DataError: a source cannot be read, or a row is none.
    """
    for rows in trainer.read_sources():
        if rows is None or not trainer.has_rows_of_known_forms:
            continue
        for one in rows:
            row = one.named()
            try:
                _check_form(row, type(trainer), trainer.config.data, one.reading.format)
            except DataError as error:
                raise one.blamed(error) from error


def load_rows(trainer: Session, train_data: Any, test_data: Any) -> tuple[Rows, Rows | None]:
    """What is trained on, and what is evaluated on, if anything.

    Raises:
        DataError: nothing is left to train on, or a source or row is wrong.
    """
    from farstep.trainers.data.dataset import Dataset
    from farstep.trainers.data.load import load

    if isinstance(train_data, list | tuple):
        train_data = train_data[: trainer.config.data.max_rows]
    given = given_examples(train_data, trainer.rows_per_group, field="train_data") if is_sequences(train_data) else None
    needs_tokens = given is None or (test_data is None and trainer.config.data.has_eval)
    test_rows = eval_rows(trainer, test_data) if test_data is not None else None
    if given is not None and not needs_tokens:
        return _rows(trainer, given, {}), test_rows
    loaded = load(
        trainer.config,
        trainer.get_tokenizer(),
        train_data=Dataset.of([given[index] for index in range(len(given))]) if given is not None else train_data,
        rows_per_group=trainer.rows_per_group,
        max_length=trainer.client.get_info().max_seq_len,
        sources=trainer.read_sources,
    )
    train = _rows(trainer, given, {}) if given is not None else _loaded(trainer, loaded.train)
    if test_rows is None and loaded.eval is not None:
        return train, _loaded(trainer, loaded.eval, is_eval=True)
    return train, test_rows


def eval_rows(trainer: Session, test_data: Any) -> Rows:
    """Test data that were given, in their order."""
    from farstep.trainers.data.dataset import Dataset
    from farstep.trainers.data.load import load

    if isinstance(test_data, list | tuple) and not test_data:
        return NoRows()
    if is_sequences(test_data):
        examples = given_examples(test_data, trainer.rows_per_group, field="test_data")
        return _rows(trainer, examples, {}, is_eval=True)
    dataset = test_data
    if not isinstance(dataset, Dataset):
        dataset = load(
            trainer.config,
            trainer.get_tokenizer(),
            train_data=test_data,
            rows_per_group=trainer.rows_per_group,
            max_length=trainer.client.get_info().max_seq_len,
        ).train
    return _loaded(trainer, dataset, is_eval=True)


def is_sequences(data: Any) -> bool:
    """Whether rows are tokens already: sequences, or groups of them."""
    return isinstance(data, list | tuple) and bool(data) and isinstance(data[0], TrainSequence | list | tuple)


def check_given(rows: Any, trainer: type[Checked], config: Any, *, field: str) -> None:
    """Raises TrainerError where rows are none, naming the row and its keys; tokenises nothing."""
    from farstep.trainers.checks import check_rows
    from farstep.trainers.config.data import DataConfig
    from farstep.trainers.data.dataset import Dataset

    has_tokens = isinstance(rows, Dataset) or is_sequences(rows)
    if has_tokens and field == "train_data" and config is not None and config.data.train_eval_share:
        raise TrainerError("parts rows, and these are tokens already", field="data.train_eval_split",
                           hint="give test_data instead", stage="validate")  # fmt: skip
    if isinstance(rows, Dataset):
        return
    check_rows(rows, field=field)
    try:
        if is_sequences(rows):
            given_examples(rows, trainer.rows_per_group, field=field)
        else:
            _check_forms(rows, trainer, config.data if config is not None else DataConfig(), field=field)
    except DataError as error:
        place = error.field if error.field.startswith(field) else f"{field}, {error.field}" if error.field else field
        raise TrainerError(error.message, hint=error.hint, field=place, stage="validate") from error


def _check_forms(rows: Any, trainer: type[Checked], data: DataConfig, *, field: str) -> None:
    from farstep.trainers.data.collection import given_rows

    for one in given_rows(rows, field=field):
        try:
            _check_form(one.row, trainer, data, None)
        except DataError as error:
            raise one.blamed(error) from error


def _check_form(row: Mapping[str, Any], trainer: type[Checked], data: DataConfig, name: str | None) -> None:
    """Whether a row is something to train on: the form alone may be good for something else.

    Raises:
        DataError: with the keys that it has.
    """
    from farstep.trainers.data.adapters.base import RowAdapter, adapter_for, keys_of
    from farstep.trainers.data.prompts import check_prompt

    if trainer.requires_rollout:
        check_prompt(row, data.prompt_key)
        return
    adapter = adapter_for(row, name or data.format)
    adapter.check(row)
    if type(adapter).to_sequences is RowAdapter.to_sequences:
        raise DataError("has nothing to learn, only something to answer", hint=keys_of(row))
    if adapter.rows_per_group != trainer.rows_per_group:
        raise DataError(
            f"is of the form {adapter.name!r}, of {adapter.rows_per_group} sequences, and this trainer takes "
            f"{trainer.rows_per_group}",
            hint=keys_of(row),
        )


def _loaded(trainer: Session, dataset: Dataset, *, is_eval: bool = False) -> Rows:
    return _rows(trainer, dataset, dataset.report.to_dict(), is_eval=is_eval)


def _rows(
    trainer: Session, dataset: Dataset | Examples, report: Mapping[str, Any], *, is_eval: bool = False
) -> LoadedRows:
    from farstep.trainers.data.loader import Loader

    config = trainer.config
    seed = config.data.seed if config.data.seed is not None else config.seed
    if is_eval:
        return LoadedRows(Loader(dataset, config.batch_size, seed=seed, shuffle=False), report)
    loader = Loader(
        dataset,
        config.batch_size,
        seed=seed,
        shuffle=config.data.shuffle,
        drop_last=config.data.drop_last,
        min_iterations=config.min_iterations,
        overfit_first_batch=config.overfit_first_batch,
    )
    return LoadedRows(loader, report)
