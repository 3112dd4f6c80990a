"""From logits to tokens: pure functions on tensors, each row on its own.

A row's token depends on its logits, its settings and its one uniform number, never on other rows. The number
comes from a counter-based generator keyed by (seed, sample index) and read at the token's position, so that a
request gives the same tokens in any batch.

The choice is by inverse cumulative distribution in float64, over token ids in ascending order. Truncation is
applied in the order top-k, top-p over what top-k left, min-p relative to the likeliest token.
Log-probabilities are those of softmax(logits / temperature) over the whole vocabulary, of the logits as they come,
that is after `logit_controls`: bias, penalties and grammars count, truncation restricts the choice and does not
renormalise what is reported. Temperature 0 takes the likeliest token (the lowest id of equals), reported at
temperature 1.

Shapes: R rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_DRAWS_AT_ONCE = 64
# So many of the likeliest tokens mostly hold what top-p keeps; rows where they do not look at more, then at all.
_FIRST_RANKS = 256
_MORE_RANKS = 4096
_WORD = (1 << 64) - 1
_PROMPT_STREAM = 1 << 63  # where samples have their number
_PHILOX_WORDS = 4  # of a block, which is what its counter counts


class Draws:
    """The uniform numbers in [0, 1) of one sequence, one a position: a pure function of (seed, sample index)."""

    def __init__(self, seed: int, sample_index: int) -> None:
        # An array, not a sequence of Python ints: numpy reads a key of two 64-bit words.
        self._generator = np.random.Philox(key=np.array([seed & _WORD, sample_index], dtype=np.uint64))
        self._block: list[float] = []
        self._used = 0

    def next(self) -> float:
        if self._used == len(self._block):
            words = self._generator.random_raw(_DRAWS_AT_ONCE)
            self._block = ((words >> np.uint64(11)) * 2.0**-53).tolist()
            self._used = 0
        self._used += 1
        return self._block[self._used - 1]


def draws_for_prompt(seed: int, first: int, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers `first` … `first + count` of a stream that no sample of the seed draws from."""
    generator = np.random.Philox(key=np.array([seed & _WORD, _PROMPT_STREAM], dtype=np.uint64))
    generator.advance(first // _PHILOX_WORDS)
    words = generator.random_raw(first % _PHILOX_WORDS + count)[first % _PHILOX_WORDS :]
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How each of R rows is sampled; tensors [R] on the logits' device.

    `top_k` is V or more where all tokens may be taken. `truncated` are the rows that restrict their choice at all.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    truncated: Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens [R] and their log-probabilities [R]; `topk_*` are [R, K], the likeliest first, −1 for impossible ones."""

    tokens: Tensor
    logprobs: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor


def sample(logits_RV: Tensor, settings: RowSettings, uniforms_R: Tensor, *, topk: int = 0) -> Sampled:
    """Chooses a token a row.

    Args:
        logits_RV: fp32.
        uniforms_R: float64 in [0, 1), one draw a row.
        topk: how many of the likeliest tokens to report for every row.

    A row with NaN among its logits gets the log-probability NaN and some token.
    """
    is_greedy_R = settings.temperature == 0
    scale_R = torch.where(is_greedy_R, 1.0, 1.0 / settings.temperature)
    logprobs_RV = torch.log_softmax(logits_RV * scale_R[:, None], dim=-1)
    weights_RV = logprobs_RV.double().exp_()
    if len(rows := settings.truncated):
        limits = (settings.top_k[rows], settings.top_p[rows], settings.min_p[rows])
        weights_RV[rows] = truncate(weights_RV[rows], *limits)
    tokens_R = torch.where(is_greedy_R, logits_RV.argmax(dim=-1), choose(weights_RV, uniforms_R))
    logprobs_R = logprobs_RV.gather(1, tokens_R[:, None])[:, 0]
    if not topk:
        return Sampled(
            tokens_R, logprobs_R, tokens_R.new_empty(len(tokens_R), 0), logprobs_R.new_empty(len(tokens_R), 0)
        )
    best = torch.topk(logprobs_RV, topk, dim=-1)
    best_ids = best.indices.masked_fill(best.values == -torch.inf, -1)
    return Sampled(tokens_R, logprobs_R, best_ids, best.values)


def choose(weights_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """The token [R] at which the running sum of weights (float64, unnormalised) first passes u · total."""
    return choose_several(weights_RV, uniforms_R[:, None])[:, 0]


def choose_several(weights_RV: Tensor, uniforms_RK: Tensor) -> Tensor:
    """As `choose`, a token for each of K draws a row: [R, K]."""
    sums_RV = weights_RV.cumsum(dim=-1)
    totals_R1 = sums_RV[:, -1:]
    # u < 1, but u · total may round up to total, past every token.
    targets_RK = torch.minimum(uniforms_RK * totals_R1, torch.nextafter(totals_R1, torch.zeros_like(totals_R1)))
    tokens_RK = torch.searchsorted(sums_RV, targets_RK, right=True)
    return tokens_RK.clamp_(max=weights_RV.shape[1] - 1)  # NaN rows alone get that far


def truncate(weights_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor) -> Tensor:
    """Zeroes the weights that top-k, top-p and min-p exclude; of equal weights, lower ids stay first."""
    kept_RV = weights_RV >= (min_p_R * weights_RV.amax(dim=-1))[:, None]
    by_rank = (top_k_R < weights_RV.shape[1]) | (top_p_R < 1)
    if len(rows := by_rank.nonzero()[:, 0]):
        kept_RV[rows] &= _kept_by_rank(weights_RV[rows], top_k_R[rows], top_p_R[rows], num_ranks=_FIRST_RANKS)
    return torch.where(kept_RV, weights_RV, 0.0)


def _kept_by_rank(weights_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, *, num_ranks: int) -> Tensor:
    """Which of the V weights top-k and top-p keep, found among the largest `num_ranks` where those decide it."""
    vocab_size = weights_RV.shape[1]
    num_ranks = min(num_ranks, vocab_size)
    is_all = num_ranks == vocab_size
    ranked_RK = (weights_RV.sort(dim=-1, descending=True) if is_all else weights_RV.topk(num_ranks, dim=-1)).values
    within_RK = torch.where(torch.arange(num_ranks, device=ranked_RK.device) < top_k_R[:, None], ranked_RK, 0.0)
    has_top_k_R = top_k_R < vocab_size
    totals_R = torch.where(has_top_k_R, within_RK.sum(dim=-1), weights_RV.sum(dim=-1))
    limit_R = torch.where(top_p_R < 1, top_p_R * totals_R, torch.inf)
    is_reached_RK = within_RK.cumsum(dim=-1) - within_RK >= limit_R[:, None]
    num_kept_R = torch.minimum((~is_reached_RK).sum(dim=-1).clamp_(min=1), top_k_R)
    kept_RV = _largest(weights_RV, num_kept_R, ranked_RK)
    is_decided_R = torch.where(has_top_k_R, top_k_R <= num_ranks, is_reached_RK[:, -1])
    more = _MORE_RANKS if num_ranks == _FIRST_RANKS else vocab_size
    if not is_all and len(rows := (~is_decided_R).nonzero()[:, 0]):
        kept_RV[rows] = _kept_by_rank(weights_RV[rows], top_k_R[rows], top_p_R[rows], num_ranks=more)
    return kept_RV


def _largest(weights_RV: Tensor, num_R: Tensor, ranked_RK: Tensor) -> Tensor:
    """The largest `num_R` of each row, at least one; of equal ones those with the lower ids."""
    least_R1 = ranked_RK.gather(1, num_R[:, None] - 1)
    kept_RV = weights_RV >= least_R1
    surplus_R = kept_RV.sum(dim=-1) - num_R
    if len(rows := surplus_R.nonzero()[:, 0]):
        equal_RV = weights_RV[rows] == least_R1[rows]
        spare_R1 = equal_RV.sum(dim=-1, keepdim=True) - surplus_R[rows, None]
        kept_RV[rows] &= ~equal_RV | (equal_RV.cumsum(dim=-1) <= spare_R1)
    return kept_RV
