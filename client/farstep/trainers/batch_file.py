"""`BatchFile`: a few batches of a run, token by token, for whoever looks at it later (`report`). Decides nothing.

    {"step": 4, "num_rows": 8, "rewards": [0.0, 1.0, …], "rows": [{"row": 0, "tokens": […], "text": […], …}]}

Kept are the batches of steps 1, 2, 4, 8, … and the last one: few, however long a run is. Of each, the rows that say
most: where there are advantages, those with the largest and the smallest. What cannot be written is one line in the
log.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from farstep.trainers.events import plain
from farstep.trainers.sequence import TrainSequence, aligned

if TYPE_CHECKING:
    from farstep.trainers.step import PendingUpdate

log = logging.getLogger("farstep")

MAX_ROWS, MAX_TOKENS, MAX_REWARDS = 4, 1024, 4096
_METADATA_CHARACTERS = 200

TextOf = Callable[[Sequence[int]], list[str] | None]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a batch: the batch itself may be gigabytes, and the next one is on its way."""

    step: int
    num_rows: int
    rewards: Sequence[float]
    places: Sequence[int]
    rows: Sequence[TrainSequence]
    logprobs: Sequence[list[float] | None]

    @classmethod
    def of(cls, step: int, updates: Sequence[PendingUpdate]) -> _Seen:
        rows = [row for update in updates for row in update.rows]
        found = [values for update in updates for values in _logprobs(update)]
        places = telling(rows)
        logprobs = [None if (values := found[place]) is None else values.tolist() for place in places]
        rewards = [row.reward for row in rows[:MAX_REWARDS]]
        return cls(step, len(rows), rewards, places, [rows[place] for place in places], logprobs)


class BatchFile:
    """
    Args:
        text_of: the text of each token; None where no tokenizer is at hand.
        has_rewards: whether a row's reward says anything.
        names: what the rows of a group are called, in turn: `chosen` and `rejected`.
    """

    def __init__(self, path: Path, *, text_of: TextOf, has_rewards: bool, names: Sequence[str] = ()) -> None:
        self._path = path
        self._text_of = text_of
        self._has_rewards = has_rewards
        self._names = names
        self._newest: _Seen | None = None
        self._works = True

    def saw(self, step: int, updates: Sequence[PendingUpdate]) -> None:
        """The optimizer steps of a batch, all done; `step` is the number of the last."""
        if not any(update.rows for update in updates):
            return
        self._newest = _Seen.of(step, updates)
        if step & (step - 1) == 0:
            self.flush()

    def flush(self) -> None:
        """Writes the newest batch, if it is not written yet."""
        newest, self._newest = self._newest, None
        if newest is None or not self._works:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._described(newest), ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            self._works = False
            log.warning("batches are not kept for the report: %s: %s", type(error).__name__, error)

    def _described(self, seen: _Seen) -> dict[str, Any]:
        described = [self._row(*each) for each in zip(seen.places, seen.rows, seen.logprobs, strict=True)]
        rewards = seen.rewards if self._has_rewards else None
        return plain({"step": seen.step, "num_rows": seen.num_rows, "rewards": rewards, "rows": described})

    def _row(self, place: int, row: TrainSequence, logprobs: list[float] | None) -> dict[str, Any]:
        tokens = row.tokens[:MAX_TOKENS]
        per_token = {
            "mask": row.loss_mask,
            "prompt_mask": row.prompt_mask,
            "logprobs": logprobs if logprobs is not None else row.logprobs,
            "sampled_logprobs": row.logprobs,
            "advantages": row.advantages,
        }
        return {
            "row": place,
            **({"name": self._names[place % len(self._names)]} if self._names else {}),
            "tokens": tokens,
            "text": self._text_of(tokens),
            "num_tokens": len(row),
            "reward": row.reward if self._has_rewards else None,
            "kinds": list(row.metadata.get("kinds") or ())[:MAX_TOKENS],
            "metadata": {str(key): _short(value) for key, value in row.metadata.items() if key != "kinds"},
            **{name: _rounded(values[:MAX_TOKENS]) for name, values in per_token.items() if values is not None},
        }


def telling(rows: Sequence[TrainSequence]) -> list[int]:
    """The places of MAX_ROWS rows: half with the largest advantages and half with the smallest, in their order; the
    first ones where there are none, or all are zero."""
    means = [math.fsum(row.advantages or ()) / max(1, row.num_targets) for row in rows]
    places = range(len(rows))
    if not any(means):
        return list(places[:MAX_ROWS])
    ranked = sorted(places, key=lambda place: -means[place])
    return sorted({*ranked[: MAX_ROWS // 2], *ranked[-(MAX_ROWS // 2) :]})


def _logprobs(update: PendingUpdate) -> list[npt.NDArray[Any] | None]:
    """Of each row as the trainer computed them, beside its tokens; None where the loss gave none."""
    outputs = [output for each in update.passes for output in each.result().loss_fn_outputs]
    if len(outputs) != len(update.rows):
        return [None] * len(update.rows)
    found: list[npt.NDArray[Any] | None] = []
    for output, row in zip(outputs, update.rows, strict=True):
        values = output["logprobs"].to_numpy() if "logprobs" in output else None
        beside = aligned(values) if values is not None and values.ndim == 1 else None
        found.append(beside if beside is not None and len(beside) == len(row) else None)
    return found


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [round(float(value), 5) if math.isfinite(value) else None for value in values]


def _short(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _METADATA_CHARACTERS else text[: _METADATA_CHARACTERS - 1] + "…"
