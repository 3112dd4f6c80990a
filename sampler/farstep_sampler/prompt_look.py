"""What a job asks about its prompt, found while the prompt is computed, chunk by chunk.

Everything is at temperature 1; only what is drawn for a position is drawn at the job's. Where chunks end makes no
difference: a position's draws are numbered from the prompt's beginning.

Shapes: T prompt positions, N tokens of a chunk, D hidden size, V vocabulary, M cells of a chunk, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from farstep_model.load import BaseModel
from farstep_model.logprobs import logprobs_by_chunk, token_logprobs, topk_logprobs
from farstep_sampler.prompt_targets import TargetLogprobs
from farstep_sampler.request import SampleJob
from farstep_sampler.result import FloatArray, SampleResult, SampleSequence, Topk
from farstep_sampler.sampling import choose_several, draws_for_prompt


class PromptLook:
    """What is known so far of a job's prompt [T]; nothing is held for a job that does not ask."""

    def __init__(self, job: SampleJob) -> None:
        self._job = job
        num_prompt = len(job.prompt)
        self._logprobs: FloatArray | None = None
        self._topk: Topk | None = None
        self._alternatives: Topk | None = None
        self._targets: TargetLogprobs | None = None
        if job.wants_prompt_logprobs:
            self._logprobs = np.full(num_prompt, np.nan, dtype=np.float32)
        if job.num_prompt_topk:
            self._topk = _unknown(num_prompt, job.num_prompt_topk)
        if job.num_prompt_alternatives:
            self._alternatives = _unknown(num_prompt - 1, job.num_prompt_alternatives)
        if job.prompt_targets is not None:
            values = np.zeros(len(job.prompt_targets.tokens), dtype=np.float32)
            self._targets = TargetLogprobs(job.prompt_targets, values)

    def take(self, hidden_ND: Tensor, *, first: int, base: BaseModel) -> None:
        """Looks at positions `first` … `first` + N, which the N hidden states come before; the adapter is active."""
        last = first + len(hidden_ND)
        if (scored := max(first, self._job.first_scored)) < last:
            self._score(hidden_ND[scored - first :], scored, last, base)
        if self._targets is not None:
            self._score_targets(self._targets, hidden_ND, first, last, base)
        if self._alternatives is not None:
            self._draw(self._alternatives, hidden_ND, first, base)

    def result(self, sequences: list[SampleSequence], *, num_cached: int) -> SampleResult:
        """Everything together, once the prompt is computed."""
        return SampleResult(sequences, self._logprobs, self._topk, num_cached, self._targets, self._alternatives)

    def _score(self, hidden_ND: Tensor, first: int, last: int, base: BaseModel) -> None:
        if self._logprobs is not None:
            targets_N = _indices(self._job.prompt[first:last].tolist(), base)
            self._logprobs[first:last] = token_logprobs(base, hidden_ND, targets_N)[0].cpu().numpy()
        if self._topk is not None:
            ids_NK, best_NK = topk_logprobs(base, hidden_ND, self._job.num_prompt_topk)
            self._topk.ids[first:last] = ids_NK.cpu().numpy()
            self._topk.logprobs[first:last] = best_NK.cpu().numpy()

    @staticmethod
    def _score_targets(found: TargetLogprobs, hidden_ND: Tensor, first: int, last: int, base: BaseModel) -> None:
        cells = found.targets.at(first, last)
        rows, row_of_cell = np.unique(found.targets.positions[cells] - first, return_inverse=True)
        tokens_M = found.targets.tokens[cells]
        values = found.logprobs[cells]  # a view
        for part, logprobs_cV in logprobs_by_chunk(base, hidden_ND[_indices(rows.tolist(), base)]):
            mine = np.flatnonzero((row_of_cell >= part.start) & (row_of_cell < part.stop))
            where = _indices((row_of_cell[mine] - part.start).tolist(), base)
            values[mine] = logprobs_cV[where, _indices(tokens_M[mine].tolist(), base)].cpu().numpy()

    def _draw(self, drawn: Topk, hidden_ND: Tensor, first: int, base: BaseModel) -> None:
        temperature, k = self._job.temperature, self._job.num_prompt_alternatives
        for part, logprobs_cV in logprobs_by_chunk(base, hidden_ND):
            num_rows, row = len(logprobs_cV), first - 1 + part.start
            if temperature == 0:
                ids_cK = logprobs_cV.argmax(dim=-1, keepdim=True).expand(-1, k)
            else:
                weights_cV = logprobs_cV.double().div_(temperature).softmax(-1)
                uniforms = torch.from_numpy(draws_for_prompt(self._job.seed, row * k, num_rows * k)).to(base.device)
                ids_cK = choose_several(weights_cV, uniforms.view(num_rows, k))
            drawn.ids[row : row + num_rows] = ids_cK.cpu().numpy()
            drawn.logprobs[row : row + num_rows] = logprobs_cV.gather(1, ids_cK).cpu().numpy()


def _unknown(num_positions: int, k: int) -> Topk:
    shape = (num_positions, k)
    return Topk(np.full(shape, -1, dtype=np.int32), np.full(shape, np.nan, dtype=np.float32))


def _indices(values: Sequence[int], base: BaseModel) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=base.device)
