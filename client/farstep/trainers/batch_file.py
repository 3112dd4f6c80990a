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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farstep.trainers.events import plain
from farstep.trainers.sequence import TrainSequence, aligned

if TYPE_CHECKING:
    from farstep.trainers.step import PendingUpdate

log = logging.getLogger("farstep")

MAX_ROWS, MAX_TOKENS, MAX_REWARDS = 4, 1024, 4096
_METADATA_CHARACTERS = 200

TextOf = Callable[[Sequence[int]], list[str] | None]


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
        self._newest: tuple[int, Sequence[PendingUpdate]] | None = None
        self._works = True

    def saw(self, step: int, updates: Sequence[PendingUpdate]) -> None:
        """The optimizer steps of a batch, all done; `step` is the number of the last."""
        if not any(update.rows for update in updates):
            return
        self._newest = (step, updates)
        if step & (step - 1) == 0:
            self.flush()

    def flush(self) -> None:
        """Writes the newest batch, if it is not written yet."""
        newest, self._newest = self._newest, None
        if newest is None or not self._works:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._described(*newest), ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            self._works = False
            log.warning("batches are not kept for the report: %s: %s", type(error).__name__, error)

    def _described(self, step: int, updates: Sequence[PendingUpdate]) -> dict[str, Any]:
        rows = [row for update in updates for row in update.rows]
        logprobs = [values for update in updates for values in _logprobs(update)]
        described = [self._row(place, rows[place], logprobs[place]) for place in telling(rows)]
        rewards = [row.reward for row in rows[:MAX_REWARDS]] if self._has_rewards else None
        return plain({"step": step, "num_rows": len(rows), "rewards": rewards, "rows": described})

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


def _logprobs(update: PendingUpdate) -> list[list[float] | None]:
    """Of each row as the trainer computed them, beside its tokens; None where the loss gave none."""
    found: list[list[float] | None] = []
    for each in update.passes:
        for output in each.result().loss_fn_outputs:
            values = output["logprobs"].to_numpy() if "logprobs" in output else None
            found.append(aligned(values).tolist() if values is not None and values.ndim == 1 else None)
    if len(found) != len(update.rows):
        return [None] * len(update.rows)
    lengths = zip(found, update.rows, strict=True)
    return [values if values is not None and len(values) == len(row) else None for values, row in lengths]


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [round(float(value), 5) if math.isfinite(value) else None for value in values]


def _short(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _METADATA_CHARACTERS else text[: _METADATA_CHARACTERS - 1] + "…"
