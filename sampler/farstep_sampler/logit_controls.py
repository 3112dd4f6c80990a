"""What requests change in their logits before temperature: bias, penalties, a shortest length, a grammar.

    logits → + logit_bias → repetition, frequency, presence → grammar's mask → no end before min_tokens → temperature

The state belongs to the sequence, so that it moves, waits and goes on with it. Only the rows of sequences that ask
for something are touched, each as it would be alone; a batch in which none does never comes here. At least one token
is always left: where a grammar leaves nothing but ends, `min_tokens` yields.

Shapes: R rows, V vocabulary, N entries of any rows, G rows with a grammar, W words of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from farstep_proto.errors import ApiError, Internal
from farstep_sampler.penalties import SeenTokens, penalised

if TYPE_CHECKING:
    from farstep_sampler.request import SampleJob

_BITS = np.arange(32, dtype=np.int32)


class SequenceControls:
    """What one sequence asks for, and how far it has come."""

    def __init__(self, job: SampleJob) -> None:
        assert (job.constraint is None) == (job.grammar is None), "a constraint is compiled before it comes here"
        self.job = job
        self.num_tokens = 0
        self.failure: ApiError | None = None  # why the sequence cannot go on
        self.seen = SeenTokens(job.penalties.prompt_tokens) if job.penalties is not None else None
        self.matcher = job.grammar.matcher() if job.grammar is not None else None

    @classmethod
    def of(cls, job: SampleJob) -> SequenceControls | None:
        """None where a job asks for nothing."""
        asks = job.logit_bias or job.penalties or job.min_tokens or job.grammar or job.constraint
        return cls(job) if asks else None

    def push(self, token: int) -> None:
        """Takes the token that was chosen, where another will follow it."""
        self.num_tokens += 1
        if self.seen is not None:
            self.seen.add(token)
        if self.matcher is not None:
            self.matcher.push(token)

    @property
    def may_end(self) -> bool:
        return self.num_tokens >= self.job.min_tokens


class LogitControls:
    """The controls of a batch: who is in which row. Made when the rows change."""

    def __init__(self, rows: dict[int, SequenceControls], *, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        biased = [(row, token, bias) for row, own in rows.items() for token, bias in own.job.logit_bias]
        self._has_bias = bool(biased)
        self._bias_rows_N, self._bias_ids_N = (self._on_device([b[i] for b in biased], np.int64) for i in (0, 1))
        self._bias_N = self._on_device([b[2] for b in biased], np.float32)

    @classmethod
    def of(cls, controls: Seq[SequenceControls | None], *, device: torch.device) -> LogitControls | None:
        """None where no row asks for anything."""
        rows = {row: own for row, own in enumerate(controls) if own is not None}
        return cls(rows, device=device) if rows else None

    def apply(self, logits_RV: Tensor) -> None:
        """Changes the logits in place. A row that cannot go on becomes NaN, its `failure` says why."""
        if self._has_bias:
            logits_RV[self._bias_rows_N, self._bias_ids_N] += self._bias_N
        self._penalise(logits_RV)
        masks = self._masks()
        self._apply_masks(logits_RV, masks)
        self._forbid_ends(logits_RV, masks)

    def _penalise(self, logits_RV: Tensor) -> None:
        rows = [(row, own) for row, own in self._rows.items() if own.seen is not None and len(own.seen.ids)]
        if not rows:
            return
        seen = [own.seen for _, own in rows if own.seen is not None]
        penalties = [own.job.penalties for _, own in rows if own.job.penalties is not None]
        sizes = [len(each.ids) for each in seen]

        def spread(values: list[float], dtype: npt.DTypeLike) -> Tensor:
            return self._on_device(np.repeat(np.array(values, dtype=dtype), sizes))

        rows_N = spread([row for row, _ in rows], np.int64)
        ids_N = self._on_device(np.concatenate([each.ids for each in seen]))
        logits_RV[rows_N, ids_N] = penalised(
            logits_RV[rows_N, ids_N],
            self._on_device(np.concatenate([each.counts for each in seen])),
            presence=spread([each.presence for each in penalties], np.float32),
            frequency=spread([each.frequency for each in penalties], np.float32),
            repetition=spread([each.repetition for each in penalties], np.float32),
        )

    def _masks(self) -> dict[int, npt.NDArray[np.int32]]:
        """The grammars' masks [W] by row; sequences whose grammar fails are marked."""
        masks: dict[int, npt.NDArray[np.int32]] = {}
        for row, own in self._rows.items():
            if own.matcher is None:
                continue
            try:
                masks[row] = own.matcher.mask()
            except ApiError as error:
                own.failure = error
            except TimeoutError:
                own.failure = Internal("the grammar's next step takes too long", field="params")
        return masks

    def _apply_masks(self, logits_RV: Tensor, masks: dict[int, npt.NDArray[np.int32]]) -> None:
        if masks:
            rows_G = self._on_device(list(masks), np.int64)
            bits_GW = self._on_device(np.stack(list(masks.values())))[:, :, None]
            allowed_GV = (bits_GW >> self._on_device(_BITS)) & 1
            allowed_GV = allowed_GV.flatten(1)[:, : logits_RV.shape[1]].bool()
            logits_RV[rows_G] = logits_RV[rows_G].masked_fill_(~allowed_GV, -torch.inf)
        for row, own in self._rows.items():
            if own.failure is not None:
                logits_RV[row] = torch.nan

    def _forbid_ends(self, logits_RV: Tensor, masks: dict[int, npt.NDArray[np.int32]]) -> None:
        rows: list[int] = []
        ids: list[int] = []
        for row, own in self._rows.items():
            if own.may_end or (row in masks and _only_ends(masks[row], own.job.stop_tokens)):
                continue
            rows += [row] * len(own.job.stop_tokens)
            ids += own.job.stop_tokens
        if rows:
            logits_RV[self._on_device(rows, np.int64), self._on_device(ids, np.int64)] = -torch.inf

    def _on_device(self, values: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=dtype)).to(self._device)


def _only_ends(mask_W: npt.NDArray[np.int32], ends: frozenset[int]) -> bool:
    num_allowed = int(np.unpackbits(mask_W.view(np.uint8)).sum())
    return num_allowed == sum(int(mask_W[token >> 5]) >> (token & 31) & 1 for token in ends)
