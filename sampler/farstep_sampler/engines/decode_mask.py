"""Which columns each row attends to when it decodes one token, for the kinds of attention a model has.

Shapes: R rows, S columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from farstep_proto.errors import InvalidInput

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class DecodeMask:
    """`kinds` are the attention kinds of the model's layers, `window` the tokens a sliding one sees.

    `additive` masks are added to the scores, as eager attention wants it; others are booleans.
    """

    kinds: tuple[str, ...]
    window: int
    additive: bool

    @classmethod
    def of(cls, config: PretrainedConfig) -> DecodeMask:
        """Reads a model's kinds of attention from its config.

        Raises:
            InvalidInput: one that keeps no keys and values, or sees them in another way.
        """
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = getattr(config, "layer_types", None) or [_SLIDING if window else _FULL]
        for kind in kinds:
            if kind not in (_FULL, _SLIDING):
                raise InvalidInput(
                    f"the torch engine does not know attention of kind {kind!r}",
                    field="base_model",
                    hint=f"it knows {_FULL} and {_SLIDING}",
                )
        return cls(tuple(dict.fromkeys(kinds)), window or 0, config._attn_implementation == "eager")

    def build(self, positions_R: Tensor, num_columns: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """The mask [R, 1, 1, S] for tokens at `positions_R`, by kind where the model has several."""
        columns_S = torch.arange(num_columns, device=positions_R.device)
        seen_RS = columns_S <= positions_R[:, None]
        masks = {}
        for kind in self.kinds:
            kept_RS = seen_RS & (columns_S > positions_R[:, None] - self.window) if kind == _SLIDING else seen_RS
            masks[kind] = self._finish(kept_RS[:, None, None], dtype)
        return masks if len(masks) > 1 else masks[self.kinds[0]]

    def _finish(self, kept_R11S: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.additive:
            return kept_R11S
        return torch.zeros(kept_R11S.shape, dtype=dtype, device=kept_R11S.device).masked_fill_(
            ~kept_R11S, torch.finfo(dtype).min
        )
