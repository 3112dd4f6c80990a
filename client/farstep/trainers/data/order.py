"""Orders of rows: which of a source, how several are mixed, which are kept for evaluation. Pure, of numbers alone.

Everything random comes from raw bits of a counter-based generator, which numpy promises never to change: the same
seed gives the same order on every machine, today and after an upgrade, so that a run can be resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from farstep.trainers.errors import DataError

Indices = npt.NDArray[np.int64]


def permutation(num: int, *seeds: int | str) -> Indices:
    """A random order of `num` things: [num] indices. Equal seeds, equal order."""
    digest = hashlib.blake2b("\x00".join(map(str, seeds)).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(num)
    return np.argsort(np.asarray(bits), kind="stable").astype(np.int64)


def sliced(num: int, bounds: Sequence[Any] | None) -> range:
    """The rows of `[start:end]`, in rows or percentages, negative from the end, as Python slices."""
    if bounds is None:
        return range(num)
    start, end = (_row(bound, num) for bound in bounds)
    return range(num)[start:end]


def _row(bound: int | str | None, num: int) -> int | None:
    if isinstance(bound, str):
        return round(float(bound.rstrip("%")) / 100 * num)
    return bound


def sampled(rows: Sequence[int], ratio: float | None, count: int | None, *seeds: int | str) -> Indices:
    """So many of the rows, each as often as any other (give or take once), in their order.

    Args:
        ratio: of their number; 2.5 is every row twice and half of them a third time.
        count: how many; not more than there are.

    Raises:
        DataError: `count` is more than there are.
    """
    chosen = np.asarray(rows, np.int64)
    if ratio is None and count is None:
        return chosen
    if count is not None and count > len(chosen):
        hint = "sample_ratio over 1 repeats rows"
        raise DataError(f"{count} of {len(chosen)} rows", field="sample_count", hint=hint)
    total = count if count is not None else round(len(chosen) * (ratio or 0))
    times, rest = divmod(total, len(chosen)) if len(chosen) else (0, 0)
    extra = np.sort(permutation(len(chosen), *seeds)[:rest])
    return np.concatenate([*[chosen] * times, chosen[extra]])


def mixed(sizes: Sequence[int], how: str, *seeds: int | str) -> tuple[Indices, Indices]:
    """The order of rows of several sources: which source, and which of its rows.

    Args:
        how: "concatenate", "interleave" (every source spread evenly over the whole), or "shuffle".
    """
    sources = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    rows = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes] or [np.zeros(0, np.int64)])
    match how:
        case "interleave":
            places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size] or [np.zeros(0)])
            order = np.argsort(places, kind="stable")
        case "shuffle":
            order = permutation(len(rows), *seeds)
        case _:
            order = np.arange(len(rows))
    return sources[order], rows[order]


def parted(contents: Sequence[bytes], eval_share: float, *seeds: int | str) -> tuple[Indices, Indices]:
    """Rows to train on and rows to evaluate on, both in their order; equal contents are never in both.

    The share is exact to the row, unless equal rows do not let it be: then it is the nearest that they do.
    """
    groups: dict[bytes, list[int]] = {}
    for index, content in enumerate(contents):
        groups.setdefault(content, []).append(index)
    members = list(groups.values())
    wanted = max(1, round(len(contents) * eval_share)) if contents else 0
    kept: list[int] = []
    for place in permutation(len(members), *seeds).tolist():
        if len(kept) + len(members[place]) <= wanted:
            kept.extend(members[place])
        if len(kept) == wanted:
            break
    held_out = np.sort(np.asarray(kept, np.int64))
    return np.setdiff1d(np.arange(len(contents), dtype=np.int64), held_out), held_out
