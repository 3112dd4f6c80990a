"""One pass of tokens through an unmodified transformers model, with keys and values kept where the engine wants them.

The model is given the tokens of all sequences as a batch of one-token rows, without padding: only attention must know
which belong together, and attention is what transformers lets one register. A pass is also the model's cache: in each
layer it is given the new keys and values first, puts them in their places, and then answers each query.

On a CPU the numbers of a token do not depend on the company, nor on whether it came in a chunk of a prompt or on its
own: each product is given at least 4 rows, and a number of columns at which MKL sums in one order (`columns_for`).

Shapes: N tokens of the pass, n rows, Q query heads, H key heads, M queries that share a key head, T tokens of a
context, S columns, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, Cache, PreTrainedModel

from farstep_proto.errors import InvalidInput

_NAME = "farstep"
_LEAST_QUERIES = 4


class Part(Protocol):
    """Tokens of a pass that are attended to in one go, one after another in the batch."""

    @property
    def num_tokens(self) -> int: ...

    def write(self, layer: int, key_NHD: Tensor, value_NHD: Tensor) -> None: ...

    def attend(self, layer: int, query_NQD: Tensor, rule: Rule) -> Tensor:
        """The result [N, Q, D] for the part's own tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """What a layer says about its attention: scores are scaled, and where `softcap` is set capped."""

    scaling: float
    softcap: float | None
    window: int | None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """[n, H, M, D] for queries of that shape, keys and values [n, H, S, D] and what is added to the scores."""
        num_queries = query.shape[-2]
        if num_queries < _LEAST_QUERIES:
            query = functional.pad(query, (0, 0, 0, _LEAST_QUERIES - num_queries))
        if self.softcap is None:
            out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scaling)
        else:
            scores = torch.matmul(query * (self.scaling / self.softcap), keys.transpose(-1, -2))
            weights = torch.softmax(torch.tanh(scores).mul_(self.softcap).add_(bias), dim=-1, dtype=torch.float32)
            out = torch.matmul(weights.to(values.dtype), values)
        return out if num_queries >= _LEAST_QUERIES else out[..., :num_queries, :]


class Pass(Cache):  # type: ignore[misc]  # transformers has no types
    """The tokens of several parts, in their order; tokens after them are padding and get zeros."""

    def __init__(self, parts: Sequence[Part], windows: Sequence[int | None]) -> None:
        super().__init__(layers=[])
        self._parts = parts
        self._windows = windows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Called by the model in each layer with [N, H, 1, D]."""
        for part, tokens in self._slices():
            part.write(layer_idx, key_states[tokens, :, 0], value_states[tokens, :, 0])
        return key_states, value_states

    def attend(
        self, layer: int, query_NQ1D: Tensor, value_size: int, *, scaling: float, softcap: float | None
    ) -> Tensor:
        """[N, 1, Q, D], as a transformers model wants it."""
        rule = Rule(scaling, softcap, self._windows[layer])
        outs = [part.attend(layer, query_NQ1D[tokens, :, 0], rule) for part, tokens in self._slices()]
        padding = len(query_NQ1D) - sum(part.num_tokens for part in self._parts)
        if padding:
            outs.append(query_NQ1D.new_zeros(padding, query_NQ1D.shape[1], value_size))
        return (torch.cat(outs) if len(outs) > 1 else outs[0])[:, None]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def _slices(self) -> Iterator[tuple[Part, slice]]:
        start = 0
        for part in self._parts:
            yield part, slice(start, start + part.num_tokens)
            start += part.num_tokens


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Has a model attend by the `farstep_pass` that it is called with, inside the block."""
    before = model.config._attn_implementation
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def visible(positions: Tensor, num_columns: int, window: int | None, *, dtype: torch.dtype) -> Tensor:
    """What is added to the scores […, S] of tokens at `positions` […]: 0 where they look, −∞ elsewhere."""
    columns_S = torch.arange(num_columns, device=positions.device)
    is_hidden = columns_S > positions[..., None]
    if window is not None:
        is_hidden |= columns_S <= positions[..., None] - window
    return torch.zeros(is_hidden.shape, dtype=dtype, device=positions.device).masked_fill_(is_hidden, -torch.inf)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    farstep_pass: Pass | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer."""
    if farstep_pass is None or s_aux is not None or position_bias is not None:
        raise InvalidInput(
            f"the torch engine does not know the attention of {type(module).__name__}", field="base_model"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = cast(int, module.layer_idx)
    return farstep_pass.attend(layer, query, value.shape[-1], scaling=scale, softcap=softcap), None


AttentionInterface.register(_NAME, _attention)
