"""Sequences end to end in one row: attention that never crosses from one to the next, and no padding at all.

The transformers model stays as it is: attention is registered with its `AttentionInterface`, positions restart at each
sequence, and where sequences begin travels under the names that flash attention has there. Attention runs by torch's
variable-length kernel where that is for such tensors, and sequence by sequence elsewhere.

Not every model can be packed: recurrent and convolutional layers carry one sequence into the next, and a softcap or
sinks are nothing that the kernel knows. `enable_packing` does not trust a list of architectures: it reads what the
config says, then compares a small packed row with its sequences alone, values and gradients, and refuses by name.

Shapes: N tokens of S sequences, B rows, T positions, H heads, E numbers of a head, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from farstep_model.load import BaseModel

# Whether sequences have a row each, filled up on the right, or lie end to end in one.
Layout = Literal["padded", "packed"]
ATTENTION = "farstep_packed"
_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
_PROBE_LENGTHS = (5, 1, 7)
# Of the size of what is compared. Rounding to bf16 itself costs 0.03 of it through 24 layers; tokens that see another
# sequence differ by all of it and more.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 3e-1}


class NotPackableError(ValueError):
    """The model computes something that a packed row would change."""


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where the sequences of a packed row lie: `starts` [S + 1], the last of them N; `positions` [1, N]."""

    positions: Tensor
    starts: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], *, upload: Callable[[np.ndarray], Tensor] = torch.from_numpy) -> Packing:
        """Of sequences of these lengths, each at least 1; `upload` brings arrays to where the model is."""
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return cls(
            upload(positions[None]),
            upload(starts.astype(np.int32)),
            max(lengths),
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What `BaseModel.hidden_states` is to be called with beside the tokens [1, N]."""
        return {
            "position_ids": self.positions,
            "cu_seq_lens_q": self.starts,
            "cu_seq_lens_k": self.starts,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }


def enable_packing(base: BaseModel) -> None:
    """Lets the model take packed rows, for good; rows that are padded on the right it takes as before.

    Raises:
        NotPackableError: this model, or this device in this dtype, cannot do it; the model is as it was.
    """
    model = base.model
    _check_architecture(model)
    before = model.config._attn_implementation
    ids = [torch.arange(length, device=base.device) * 7 + length for length in _PROBE_LENGTHS]
    embed = model.get_input_embeddings()
    embedded = [embed(part % embed.num_embeddings).detach().float()[None] for part in ids]
    expected = [_probe(model, part) for part in embedded]
    try:
        model.set_attn_implementation(ATTENTION)
        if model.config.get_text_config()._attn_implementation != ATTENTION:
            raise NotPackableError(f"{type(model).__name__} has an attention of its own")
        packing = Packing.of(_PROBE_LENGTHS, upload=lambda array: torch.from_numpy(array).to(base.device))
        found = _probe(model, torch.cat(embedded, dim=1), **packing.arguments)
        for name, one, many in zip(("values", "gradients"), found, zip(*expected, strict=True), strict=True):
            error = _largest_error(one, torch.cat(many, dim=1))
            if not error <= _TOLERANCE[base.dtype]:
                raise NotPackableError(
                    f"{name} of a packed row differ by {error:.2g} from those of its sequences alone"
                )
    except NotPackableError:
        model.set_attn_implementation(before)
        raise
    except (RuntimeError, TypeError, ValueError) as error:  # no such kernel here, or a model that takes no such row
        model.set_attn_implementation(before)
        raise NotPackableError(str(error).partition("\n")[0]) from error


def _check_architecture(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - _PACKABLE_LAYERS
    if kinds:
        raise NotPackableError(f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}")
    # Models with flash attention say through its arguments all that others say through a mask.
    if not model._supports_flash_attn:
        raise NotPackableError(f"the attention of {type(model).__name__} is not expressed without a mask")


def _probe(model: PreTrainedModel, embedded_1ND: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Hidden states, and the gradient at the embeddings of a weighted sum of them."""
    with torch.enable_grad():
        x_1ND = embedded_1ND.to(model.dtype, copy=True).requires_grad_()
        hidden_1ND = model.base_model(inputs_embeds=x_1ND, use_cache=False, **arguments).last_hidden_state.float()
        weights_D = torch.linspace(-1, 1, hidden_1ND.shape[-1], device=x_1ND.device)
        (gradient,) = torch.autograd.grad((hidden_1ND * weights_D).sum(), x_1ND)
    return hidden_1ND.detach(), gradient.float()


def _largest_error(found_1ND: Tensor, expected_1ND: Tensor) -> float:
    """Of any token, relative to the root mean square of all."""
    scale = expected_1ND.norm() / expected_1ND.shape[1] ** 0.5
    return float((found_1ND - expected_1ND).norm(dim=-1).max() / scale)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention as transformers asks for it: [1, H, N, E] with starts of sequences, or rows [B, H, T, E].

    Raises:
        NotPackableError: it asks for something else.
    """
    _refuse_others(module, attention_mask, others)
    if cu_seq_lens_q is None:
        out_BHTE = _attend_rows(query, key, value, scaling, sliding_window)
    elif query.is_cuda and query.dtype != torch.float32:
        assert max_length_q is not None
        return _attend_by_kernel(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q), None
    else:
        bounds = pairwise(cu_seq_lens_q.tolist())
        sequences = [(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b]) for a, b in bounds]
        out_BHTE = torch.cat([_attend_rows(*sequence, scaling, sliding_window) for sequence in sequences], dim=2)
    return out_BHTE.transpose(1, 2).contiguous(), None


def _attend_by_kernel(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, starts: Tensor, longest: int
) -> Tensor:
    """[1, N, H, E] of a packed row."""
    out_NHE = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out_NHE, Tensor)
    return out_NHE[None]


def _attend_rows(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """[B, H, T, E] of rows that each are a sequence, padded on the right or not."""
    length = query.shape[2]
    mask_TT = None
    if window is not None and window < length:
        mask_TT = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask_TT, is_causal=mask_TT is None, scale=scaling, enable_gqa=grouped
    )


def _refuse_others(module: nn.Module, attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    """Whatever else changes the numbers: the kernel does not know it."""
    asked = [name for name in ("softcap", "s_aux", "position_bias", "cache") if others.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if others.get("dropout"):
        asked.append("dropout")
    is_causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        asked.append("attention in both directions")
    if asked:
        raise NotPackableError(f"{type(module).__name__} asks for {', '.join(asked)}")


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
