"""The base model with its adapters, given tokens that belong to any number of sequences.

Shapes: N tokens of a pass, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from farstep_model.load import BaseModel
from farstep_proto.errors import InvalidInput
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.attention import Part, Pass, own_attention
from farstep_sampler.engines.attention_kinds import windows_of
from farstep_sampler.engines.kv_rows import Slab
from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.engines.parts import ChunkPart, RowsPart

_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """How a model is run: `windows` says how far back each layer looks."""

    base: BaseModel
    adapters: AdapterTable
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, base: BaseModel, adapters: AdapterTable, shape: KVShape) -> Decoder:
        """Raises InvalidInput where the model cannot be run this way; found by trying."""
        decoder = cls(base, adapters, windows_of(base.model.config.get_text_config(), shape.num_layers))
        decoder._check(shape)
        return decoder

    def hidden_states(self, tokens_N: Tensor, positions_N: Tensor, parts: Sequence[Part]) -> Tensor:
        """Hidden states [N, D] of the parts' tokens, whose keys and values are kept; inside `active`."""
        with own_attention(self.base.model):
            passed = Pass(parts, self.windows)
            hidden_N1D = self.base.hidden_states(
                tokens_N[:, None],
                position_ids=positions_N[:, None],
                past_key_values=passed,
                use_cache=True,
                farstep_pass=passed,
            )
        return hidden_N1D[:, 0]

    @contextmanager
    def active(self, slots_N: Tensor) -> Iterator[None]:
        """Computes token n with the adapter in slot `slots_N[n]` inside the block; the slots are best on the CPU."""
        with torch.no_grad(), self.adapters.active(slots_N):
            yield

    def _check(self, shape: KVShape) -> None:
        """Compares a prompt in two chunks, and then a token by itself, with the model's own forward pass."""
        base = self.base
        ids_T = torch.arange(9, device=base.device) % base.vocab_size
        with torch.no_grad():
            expected_TV = base.logits(base.hidden_states(ids_T[None]))[0]
        slab = Slab(64, shape.zeros(1, 64))
        context, where_T = [array[0] for array in slab.arrays], torch.arange(9, device=base.device)
        found = []
        with self.active(torch.zeros(8, dtype=torch.long)):
            for first in (0, 4):
                chunk = slice(first, first + 4)
                part = ChunkPart(context, first, 4)
                found.append(base.logits(self.hidden_states(ids_T[chunk], where_T[chunk], [part])))
            padded = [torch.cat([x[8:], x[:3]]) for x in (ids_T, where_T)]
            hidden = self.hidden_states(padded[0], padded[1], [RowsPart(slab, where_T[8:], 8)])
            found.append(base.logits(hidden[:1]))
        difference = ((torch.cat(found) - expected_TV).abs().max() / expected_TV.abs().max().clamp_min(1.0)).item()
        if not difference <= _CHECK_TOLERANCE[base.dtype]:
            raise InvalidInput(
                f"{type(base.model).__name__} decodes differently with a cache ({difference:.2g} of its logits)",
                field="base_model",
                hint="the torch engine serves models whose only state is keys and values",
            )


def batch_size(num_tokens: int) -> int:
    """How many tokens a pass is made of for that many real ones: few sizes, since each costs some preparation."""
    if num_tokens <= 8:
        return 4 if num_tokens <= 4 else 8
    multiple = 8 if num_tokens <= 64 else 16 if num_tokens <= 128 else 32
    return -(-num_tokens // multiple) * multiple
