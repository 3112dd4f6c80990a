"""Which items are kept, and which are held out. Pure; orders are kept, and equal seeds part alike everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from farstep.trainers.data.collection import content_of
from farstep.trainers.data.order import parted
from farstep.trainers.errors import DataError
from farstep.trainers.synthesis.result import Item

Key = str | Iterable[str] | Callable[[Item], Any] | None


def filter_by_score(items: Sequence[Item], min_score: float | None, *, key: str = "score") -> list[Item]:
    """Those with at least that score; those without a score stay.

    Raises:
        DataError: a score is no number.
    """
    if min_score is None:
        return list(items)
    kept = []
    for index, item in enumerate(items):
        score = item.get(key)
        if score is not None:
            if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
                raise DataError(f"{score!r} is no number", field=f"items[{index}].{key}")
            if score < min_score:
                continue
        kept.append(item)
    return kept


def deduplicate(items: Sequence[Item], key: Key = None) -> list[Item]:
    """The first of each.

    Args:
        key: the key or keys, or the function of an item, by which two are equal; None: everything in them.

    Raises:
        DataError: an item lacks a key.
    """
    seen: set[bytes] = set()
    kept = []
    for item, content in zip(items, contents_of(items, key), strict=True):
        if content not in seen:
            seen.add(content)
            kept.append(item)
    return kept


def split(items: Sequence[Item], train_ratio: float, *, seed: int, key: Key = None) -> tuple[list[Item], list[Item]]:
    """Parts them for training and test, each in its order: of equal items (by `key`) all are on one side.

    The ratio is exact to the item, unless equal items do not let it be. 1.0 holds nothing out.

    Raises:
        DataError: `train_ratio` is not in (0, 1].
    """
    if isinstance(train_ratio, bool) or not isinstance(train_ratio, int | float) or not 0 < train_ratio <= 1:
        raise DataError(f"{train_ratio!r} is not over 0 and up to 1", field="train_ratio")
    share = 1 - train_ratio
    if not round(len(items) * share):
        return list(items), []
    train, test = parted(contents_of(items, key), share, seed, "synthesis")
    if not len(train):
        return list(items), []
    return [items[index] for index in np.sort(train).tolist()], [items[index] for index in test.tolist()]


def contents_of(items: Sequence[Item], key: Key = None) -> list[bytes]:
    """What makes each equal to others."""
    if callable(key):
        return [content_of({"": key(item)}) for item in items]
    names = (key,) if isinstance(key, str) else tuple(key or ())
    found = []
    for index, item in enumerate(items):
        if missing := [name for name in names if name not in item]:
            raise DataError("missing", field=f"items[{index}].{missing[0]}", hint=f"it has {', '.join(map(str, item))}")
        found.append(content_of({name: item[name] for name in names} if names else item))
    return found
