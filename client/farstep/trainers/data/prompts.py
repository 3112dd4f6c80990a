"""Prompts in batches, for rollouts: those that are too long are skipped and counted, every record is kept whole.

Invariant: `scanned` of all batches of a pass is the number of rows that were looked at, and every one of them is in a
batch or in a skip count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep.trainers.config.data import DataConfig
from farstep.trainers.config.trainer import TrainerConfig
from farstep.trainers.data.adapters.base import RowAdapter, keys_of
from farstep.trainers.data.collection import RawRows, collected, content_of, given_rows
from farstep.trainers.data.conversation import messages_of, tools_of
from farstep.trainers.data.loader import Cursor
from farstep.trainers.data.order import permutation
from farstep.trainers.data.sequences import prompt_tokens
from farstep.trainers.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_PROMPT_KEY, DEFAULT_SOLUTIONS_KEY = "prompt", "solutions"
_CONVERSATIONS = ("messages", "conversations")
_SOLUTIONS = ("solution", "answer", "ground_truth", "output")


@dataclass(frozen=True, slots=True)
class PromptItem:
    """
    Args:
        record: the whole row, as its source has it (under our names, where `columns` says so).
        prompt: text or messages, as the row has it.
        tokens: what the model is asked with.
        solutions: what the row has under the configured key (or, by default, as `answer` and the like), or None.
        index: the row's number in the data.
    """

    record: Mapping[str, Any]
    prompt: Any
    tokens: tuple[int, ...]
    solutions: Any = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """
    Args:
        scanned: rows that were looked at for this batch.
        skipped_long: of them, those whose prompt is too long.
        total_skipped_long: the same since the pass began.
        cursor: what comes after it.
    """

    items: tuple[PromptItem, ...]
    scanned: int
    skipped_long: int
    total_skipped_long: int
    cursor: Cursor = field(default_factory=Cursor)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def prompts(self) -> list[Any]:
        return [item.prompt for item in self.items]


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Where prompts and solutions are in a row, and how long a prompt may be."""

    batch_size: int
    max_prompt_tokens: int | None = None
    prompt_key: str = DEFAULT_PROMPT_KEY
    solutions_key: str = DEFAULT_SOLUTIONS_KEY
    seed: int = 42
    shuffle: bool = False


class PromptLoader:
    """Passes over rows with prompts. A cursor's `batch` counts rows here: skipped ones leave no trace in batches."""

    def __init__(
        self,
        rows: object,
        tokenizer: PreTrainedTokenizerBase,
        settings: PromptSettings,
        config: DataConfig | None = None,
    ) -> None:
        if settings.batch_size < 1:
            raise DataError(f"{settings.batch_size}, and at least 1 is needed", field="batch_size")
        self.rows = rows if isinstance(rows, RawRows) else given_rows(rows, field="dataset")
        self._tokenizer, self._settings = tokenizer, settings
        self._config = config if config is not None else DataConfig()

    def __len__(self) -> int:
        """Rows of a pass."""
        return len(self.rows)

    @property
    def batch_size(self) -> int:
        return self._settings.batch_size

    @property
    def max_prompt_tokens(self) -> int | None:
        return self._settings.max_prompt_tokens

    @cached_property
    def data(self) -> str:
        """Names the rows and their order: equal where they are."""
        digest = hashlib.sha256(b"".join(content_of(raw.row) for raw in self.rows)).hexdigest()
        how = f"{self._settings.prompt_key}.{self._settings.seed}.{self._settings.shuffle}"
        return f"prompts.{digest[:16]}.{len(self.rows)}.{how}"

    def batches(self, cursor: Cursor | None = None) -> Iterator[PromptBatch]:
        """The rest of the cursor's pass; the last batch may be smaller.

        Raises:
            DataError: at once, if the cursor is of other data; later, if a row has no prompt, or all are too long.
        """
        place = Cursor(data=self.data) if cursor is None else cursor
        if (place.data and place.data != self.data) or place.batch > len(self.rows):
            raise DataError(f"the cursor is of other data: {place.data}, and this is {self.data}", field="cursor")
        return self._pass(place)

    def _pass(self, place: Cursor) -> Iterator[PromptBatch]:
        """A batch is given when the next row that fits is found, so that none is empty and every skip is in one."""
        order = self.order(place.epoch)
        total = place.skipped
        items: list[PromptItem] = []
        scanned = skipped = 0
        for number in range(place.batch, len(order)):
            item = self.item(int(order[number]))
            if self.is_too_long(item):
                scanned, skipped, total = scanned + 1, skipped + 1, total + 1
                continue
            if len(items) == self._settings.batch_size:
                after = Cursor(place.epoch, number, self.data, total)
                yield PromptBatch(tuple(items), scanned, skipped, total, after)
                items, scanned, skipped = [], 0, 0
            items.append(item)
            scanned += 1
        if items:
            yield PromptBatch(tuple(items), scanned, skipped, total, Cursor(place.epoch + 1, 0, self.data))
        elif place.batch == 0:
            most = self._settings.max_prompt_tokens
            raise DataError(f"all {len(order)} prompts are over {most} tokens", field="data.max_prompt_length")

    def item(self, index: int) -> PromptItem:
        """
        Raises:
            DataError: the row has no prompt: with its number and the keys that it has.
        """
        raw = self.rows[index]
        row = raw.named()
        key = _key_of(row, self._settings.prompt_key)
        if key is None:
            raise raw.blamed(DataError(f"no {self._settings.prompt_key!r}", hint=keys_of(row)))
        try:
            if key in _CONVERSATIONS:
                tokens = RowAdapter.get("messages")().to_prompt(row, self._tokenizer, self._config)
            else:
                tokens = prompt_tokens(row[key], self._tokenizer, self._config, field=key, tools=tools_of(row))
        except DataError as error:
            raise raw.blamed(error) from error
        return PromptItem(row, row[key], tuple(tokens), self._solutions(row), index)

    def _solutions(self, row: Mapping[str, Any]) -> Any:
        key = self._settings.solutions_key
        candidates = (key, *_SOLUTIONS) if key == DEFAULT_SOLUTIONS_KEY else (key,)
        return next((row[name] for name in candidates if name in row), None)

    def lengths(self) -> np.ndarray[Any, Any]:
        """[rows] tokens of each prompt, however long it is."""
        return np.asarray([len(self.item(index).tokens) for index in range(len(self))], np.int64)

    def is_too_long(self, item: PromptItem) -> bool:
        return self.max_prompt_tokens is not None and len(item.tokens) > self.max_prompt_tokens

    def order(self, epoch: int) -> np.ndarray[Any, Any]:
        """Numbers of rows, too long ones among them, as a pass goes through them."""
        if not self._settings.shuffle:
            return np.arange(len(self.rows))
        return permutation(len(self.rows), self._settings.seed, "epoch", epoch, 0)


def check_prompt(row: Mapping[str, Any], prompt_key: str = DEFAULT_PROMPT_KEY) -> None:
    """Whether a row has a prompt, as far as that is seen without a tokenizer.

    Raises:
        DataError: it has none; with the keys that it has.
    """
    key = _key_of(row, prompt_key)
    if key is None:
        raise DataError(f"no {prompt_key!r}", hint=keys_of(row))
    if key in _CONVERSATIONS:
        RowAdapter.get("messages")().check(row)
    elif not isinstance(row[key], str):
        messages_of(row[key], field=key)


def _key_of(row: Mapping[str, Any], wanted: str) -> str | None:
    """The wanted key; or, where that is the default one, the one that other forms of row have."""
    candidates = (wanted, "input", *_CONVERSATIONS) if wanted == DEFAULT_PROMPT_KEY else (wanted,)
    return next((name for name in candidates if name in row), None)


def load_prompt_batches(
    dataset: object,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    max_prompt_tokens: int | None = None,
    prompt_key: str = DEFAULT_PROMPT_KEY,
    solutions_key: str = DEFAULT_SOLUTIONS_KEY,
    config: DataConfig | None = None,
) -> Iterator[PromptBatch]:
    """One pass over rows in their order, the last batch as small as it is.

    Raises:
        DataError: no list of rows, or a row without its prompt (with its number and keys).
    """
    settings = PromptSettings(batch_size, max_prompt_tokens, prompt_key, solutions_key)
    return PromptLoader(dataset, tokenizer, settings, config).batches()


def prompt_loader(
    config: TrainerConfig, tokenizer: PreTrainedTokenizerBase, *, train_data: object = None
) -> PromptLoader:
    """What a configuration names, shuffled anew in each epoch: `batch_size` prompts a batch.

    Raises:
        DataError: there is nothing to train on, or a source is wrong.
    """
    data = config.data
    seed = config.seed if data.seed is None else data.seed
    rows = given_rows(train_data) if train_data is not None else collected(data, seed=seed)[0]
    if rows is None:
        raise DataError("there is nothing to train on", field="data.sources", hint="give dataset, or train_data")
    settings = PromptSettings(
        config.batch_size, data.max_prompt_length, data.prompt_key, data.solutions_key, seed, data.shuffle
    )
    return PromptLoader(rows, tokenizer, settings, data)
