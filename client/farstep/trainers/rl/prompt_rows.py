"""`PromptRows`: prompts as a trainer's data: batches whose number is known beforehand, and found again by it.

Where prompts have a limit, all are tokenized once, so that the horizon of a run is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep.trainers.data.collection import Collected, RawRows, collected, given_parts, given_rows
from farstep.trainers.data.loader import Cursor
from farstep.trainers.data.prompts import PromptBatch, PromptLoader, PromptSettings
from farstep.trainers.errors import DataError

if TYPE_CHECKING:
    from farstep.trainers.config import TrainerConfig


@dataclass(frozen=True, slots=True)
class PlacedPrompts:
    """A batch of prompts, and which one it is: what random numbers of its rollout come from."""

    epoch: int
    index: int
    prompts: PromptBatch

    def __len__(self) -> int:
        return len(self.prompts)


class PromptRows:
    """`Rows` whose batches are `PlacedPrompts`."""

    def __init__(self, loader: PromptLoader) -> None:
        self.loader = loader
        fits = np.ones(len(loader), dtype=bool)
        if loader.max_prompt_tokens is not None:
            fits = self.lengths <= loader.max_prompt_tokens
        self._fits = fits
        if not fits.any():
            raise DataError(
                f"all {len(fits)} prompts are over {loader.max_prompt_tokens} tokens", field="data.max_prompt_length"
            )

    def __len__(self) -> int:
        return int(self._fits.sum())

    @cached_property
    def lengths(self) -> np.ndarray[Any, Any]:
        """[rows] tokens of each prompt, those that are too long among them."""
        return self.loader.lengths()

    @property
    def num_batches(self) -> int:
        return -(-len(self) // self.loader.batch_size)

    @property
    def identity(self) -> str:
        return f"{self.loader.data}.{self.loader.batch_size}.{len(self)}"

    @property
    def report(self) -> Mapping[str, Any]:
        return {"rows": len(self.loader), "used": len(self), "skipped_long": len(self.loader) - len(self)}

    def num_examples(self, index: int) -> int:
        return min(self.loader.batch_size, len(self) - index * self.loader.batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        if first >= self.num_batches:
            return
        fitting = np.flatnonzero(self._fits[self.loader.order(epoch)])
        row = int(fitting[first * self.loader.batch_size]) if first else 0
        cursor = Cursor(epoch, row, self.loader.data)
        for index, prompts in enumerate(self.loader.batches(cursor), start=first):
            yield PlacedPrompts(epoch, index, prompts)


def load_prompt_rows(
    config: TrainerConfig,
    tokenizer: Any,
    train_data: object,
    test_data: object,
    *,
    sources: Callable[[], Collected] | None = None,
) -> tuple[PromptRows, PromptRows | None]:
    """What is trained and evaluated on: what was given, else the configuration's sources.

    Args:
        sources: gives the sources' rows, where they were read before.

    Raises:
        DataError: there is nothing to train on, or a source or row is wrong.
    """
    data = config.data
    seed = config.seed if data.seed is None else data.seed
    train_data, test_data = given_parts(data, train_data, test_data or None, seed=seed)
    train = given_rows(train_data) if train_data is not None else None
    test = given_rows(test_data, field="test_data") if test_data else None
    if train is None or (test is None and data.has_eval):
        found, held_out = sources() if sources is not None else collected(data, seed=seed)
        train, test = train if train is not None else found, test if test is not None else held_out
    if train is None:
        raise DataError("there is nothing to train on", field="data.sources", hint="give dataset, or train_data")
    test_rows = prompt_rows(config, tokenizer, test, shuffle=False) if test is not None else None
    return prompt_rows(config, tokenizer, train, shuffle=data.shuffle), test_rows


def prompt_rows(config: TrainerConfig, tokenizer: Any, rows: RawRows, *, shuffle: bool) -> PromptRows:
    data = config.data
    if data.max_rows is not None and len(rows) > data.max_rows:
        rows = rows.only(np.arange(data.max_rows))
    settings = PromptSettings(
        config.batch_size,
        data.max_prompt_length,
        data.prompt_key,
        data.solutions_key,
        config.seed if data.seed is None else data.seed,
        shuffle,
    )
    return PromptRows(PromptLoader(rows, tokenizer, settings, data))
