"""Preference optimisation: DPO and IPO, of pairs of a chosen and a rejected answer.

The reference is the weights that the run began with: the adapter off where that was fresh, else as it was loaded; so a
run after SFT does not refer to the bare base. `preference.reference` names another checkpoint. Its log-probabilities
are asked for a batch ahead, while the worker is busy with the one before, and remembered for the next epochs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from farstep.trainers.gradients import Batch
from farstep.trainers.horizon import chunks
from farstep.trainers.role import Role
from farstep.trainers.sequence import TrainSequence, aligned
from farstep.trainers.trainer import Trainer

if TYPE_CHECKING:
    from farstep.future import Future
    from farstep.results import ForwardBackwardOutput
    from farstep.trainers.resume import ResumePoint

REFERENCE = "ref"
REMEMBERED_BYTES = 256 * 1024 * 1024

_Key = tuple[bytes, bytes]
_NAMED = {"sigmoid": "dpo", "ipo": "ipo"}


class _References:
    """Log-probabilities of rows by their content, the last used ones; [T] each, 0 where nothing is trained."""

    def __init__(self, max_bytes: int = REMEMBERED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._known: OrderedDict[_Key, npt.NDArray[np.float32]] = OrderedDict()

    @staticmethod
    def key(row: TrainSequence) -> _Key:
        return np.asarray(row.tokens, np.int32).tobytes(), (np.asarray(row.loss_mask) != 0).tobytes()

    def get(self, key: _Key) -> npt.NDArray[np.float32] | None:
        if key in self._known:
            self._known.move_to_end(key)
        return self._known.get(key)

    def put(self, key: _Key, logprobs: npt.NDArray[np.float32]) -> None:
        if key in self._known:
            return
        self._known[key] = logprobs
        self._num_bytes += _size(key, logprobs)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _size(*self._known.popitem(last=False))


def _size(key: _Key, logprobs: npt.NDArray[np.float32]) -> int:
    return len(key[0]) + len(key[1]) + logprobs.nbytes


class DPOTrainer(Trainer):
    """Rows: `prompt`, `chosen`, `rejected`. The loss before the first step is ln 2 a pair.

    Metrics: `accuracy` (pairs whose chosen answer is preferred more than by the reference), `margin`, `chosen_reward`,
    `rejected_reward`.
    """

    name = "dpo"
    loss_fn = "dpo"
    loss_inputs = ("ref_logprobs",)
    rows_per_group = 2
    row_names = ("chosen", "rejected")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._references = _References()

    def needed_roles(self) -> list[Role]:
        path = self.config.preference.reference
        return [] if path is None else [Role(REFERENCE, path)]

    def create_roles(self, resume_from: ResumePoint | None = None) -> None:
        super().create_roles(resume_from)
        wanted = self.config.preference.loss
        if wanted is not None and type(self).loss_fn in _NAMED.values():  # a function of one's own stays
            self.loss_fn = _NAMED[wanted]

    def loss_config(self) -> Mapping[str, float]:
        wanted = self.config.preference
        return {"beta": wanted.beta, "label_smoothing": wanted.label_smoothing}

    def normalizer(self, batch: Sequence[TrainSequence]) -> float:
        """Pairs: the loss is a mean over them."""
        return len(batch) / 2 or 1.0

    def begin_batch(self, batch: Batch) -> Callable[[], Batch]:
        """Asks for what the reference has not said yet of these rows."""
        known = [self._references.get(self._references.key(row)) for row in batch]
        unknown = [row for row, logprobs in zip(batch, known, strict=True) if logprobs is None]
        passes = [self._asked(part) for part in (chunks(unknown, self.config.mini_bs) if unknown else [])]

        def finish() -> Batch:
            outputs = [output["logprobs"].to_numpy() for each in passes for output in each.result().loss_fn_outputs]
            for row, values in zip(unknown, outputs, strict=True):
                self._references.put(self._references.key(row), aligned(np.asarray(values, np.float32)))
            found = iter(aligned(np.asarray(values, np.float32)) for values in outputs)
            logprobs = [next(found) if values is None else values for values in known]
            ready = [row.replace(ref_logprobs=each.tolist()) for row, each in zip(batch, logprobs, strict=True)]
            return self.prepare(
                [row.averaged() for row in ready] if self.config.preference.length_normalized else ready
            )

        return finish

    def _asked(self, rows: Batch) -> Future[ForwardBackwardOutput]:
        data = [row.to_datum(weights=False) for row in rows]
        if self.config.preference.reference is None:
            return self.client.forward(data, adapter="start")
        return self.roles.client_of(REFERENCE).forward(data)


class IPOTrainer(DPOTrainer):
    """The same with IPO's loss, (Δ − 1 / (2·beta))²."""

    name = "ipo"
    loss_fn = "ipo"
