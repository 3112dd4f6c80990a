"""Log-probabilities from hidden states, in chunks over tokens: the logits of a batch never exist at once.

With gradients, a chunk's logits are computed again in the backward pass, so that memory is that of one chunk whatever
the number of tokens and the size of the vocabulary. Small batches skip this: it would only cost time. The result is the
same either way.

Shapes: N tokens of any sequences, D hidden size, V vocabulary, K candidates a token, c tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from farstep_model.load import BaseModel
from farstep_model.lora import LoraLinear, Switch

# Logits above this number (256 MB in fp32) are computed in chunks of at most as many.
MAX_LOGITS = 1 << 26


def token_logprobs(
    base: BaseModel,
    hidden_ND: Tensor,
    targets: Tensor,
    *,
    rows_N: Tensor | None = None,
    with_entropy: bool = False,
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of given tokens, and the entropy (nats) of the distributions that they come from.

    Args:
        hidden_ND: last hidden states at the positions wanted, from `base.hidden_states`. Leave ignored positions out.
        targets: [N], or [N, K] for several candidates a position; tokens of the vocabulary.
        rows_N: the active adapters' index for each token; needed where several adapters are active and the output
            layer is among their layers.
        with_entropy: compute the entropies, which carry no gradient.
        max_logits: how many logits may exist at once.

    Returns:
        Log-probabilities in fp32 of the shape of `targets`, with gradients to hidden states and active adapters; and
        entropies [N] in fp32, or None.
    """
    if hidden_ND.shape[0] != targets.shape[0]:
        raise ValueError(f"{hidden_ND.shape[0]} hidden states for {targets.shape[0]} targets")
    num_tokens = _chunk_size(base, max_logits)
    if len(hidden_ND) == 0:
        return hidden_ND.new_zeros(targets.shape, dtype=torch.float32), hidden_ND.new_zeros(0) if with_entropy else None
    recompute = torch.is_grad_enabled() and len(hidden_ND) > num_tokens
    logprobs, entropies = [], []
    for part in _chunks(len(hidden_ND), num_tokens):
        chunk = _Chunk(base, rows_N[part] if rows_N is not None else None, with_entropy=with_entropy)
        if recompute:
            found = checkpoint(chunk.logprobs, hidden_ND[part], targets[part], use_reentrant=False)
        else:
            found = chunk.logprobs(hidden_ND[part], targets[part])
        logprobs.append(found[0])
        entropies.append(found[1])
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


@torch.no_grad()
def topk_logprobs(
    base: BaseModel, hidden_ND: Tensor, k: int, *, rows_N: Tensor | None = None, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens at each position: ids [N, k] int64 and log-probabilities [N, k] fp32, likeliest first.

    `rows_N` and `max_logits` are as in `token_logprobs`.
    """
    if not 1 <= k <= base.vocab_size:
        raise ValueError(f"k {k} is not between 1 and the vocabulary's {base.vocab_size}")
    ids = torch.empty(len(hidden_ND), k, dtype=torch.long, device=hidden_ND.device)
    logprobs = torch.empty(len(hidden_ND), k, device=hidden_ND.device)
    for part in _chunks(len(hidden_ND), _chunk_size(base, max_logits)):
        logits_cV = _Chunk(base, rows_N[part] if rows_N is not None else None).logits(hidden_ND[part])
        top = logits_cV.topk(k, dim=-1)
        ids[part] = top.indices
        logprobs[part] = top.values - logits_cV.logsumexp(-1, keepdim=True)
    return ids, logprobs


@torch.no_grad()
def logprobs_by_chunk(
    base: BaseModel, hidden_ND: Tensor, *, max_logits: int = MAX_LOGITS
) -> Iterator[tuple[slice, Tensor]]:
    """The whole distributions, some positions at a time: which, and their log-probabilities [c, V] in fp32.

    One adapter at most may be active. `max_logits` is as in `token_logprobs`.
    """
    for part in _chunks(len(hidden_ND), _chunk_size(base, max_logits)):
        yield part, _Chunk(base, None).logits(hidden_ND[part]).log_softmax(-1)


class _Chunk:
    """A piece of work that gives the same again in the backward pass, whatever is active by then."""

    def __init__(self, base: BaseModel, rows_c: Tensor | None, *, with_entropy: bool = False) -> None:
        self.base = base
        self.with_entropy = with_entropy
        output_layer = base.model.get_output_embeddings()
        self.switch = output_layer.switch if isinstance(output_layer, LoraLinear) else Switch()
        self.training = self.switch.training
        self.source = self.switch.source
        if self.source is not None and isinstance(output_layer, LoraLinear):
            if rows_c is not None:
                self.source = self.source.with_rows(rows_c)
            elif self.source.is_mixed(output_layer.layer):
                raise ValueError(
                    "several adapters are active on the output layer: rows_N must say whose token is whose"
                )

    def logits(self, hidden_cD: Tensor) -> Tensor:
        with self.switch.using(self.source, training=self.training):
            return self.base.logits(hidden_cD)

    def logprobs(self, hidden_cD: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        # log_softmax and its gradient are each one pass over [c, V]; logsumexp and its gradient are six.
        logprobs_cV = self.logits(hidden_cD).log_softmax(-1)
        targets_cK = targets.reshape(len(targets), -1)
        logprobs = logprobs_cV.gather(-1, targets_cK).reshape(targets.shape)
        return logprobs, _entropy(logprobs_cV.detach()) if self.with_entropy else None


def _entropy(logprobs_cV: Tensor) -> Tensor:
    """−Σ p·log p, written so that a logit of −∞ adds nothing."""
    probs_cV = logprobs_cV.exp()
    return -torch.where(probs_cV > 0, probs_cV * logprobs_cV, 0).sum(-1)


def _chunk_size(base: BaseModel, max_logits: int) -> int:
    return max(1, max_logits // base.vocab_size)


def _chunks(num_tokens: int, size: int) -> Iterator[slice]:
    for start in range(0, num_tokens, size):
        yield slice(start, start + size)
