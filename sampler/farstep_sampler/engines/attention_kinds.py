"""How far back each layer of a model looks, read from its config."""

from __future__ import annotations

from transformers import PretrainedConfig

from farstep_proto.errors import InvalidInput

_FULL, _SLIDING = "full_attention", "sliding_attention"


def windows_of(config: PretrainedConfig, num_layers: int) -> tuple[int | None, ...]:
    """For each layer how many tokens it sees, the present one included; None: all.

    Raises:
        InvalidInput: a layer that keeps no keys and values, or sees them in another way.
    """
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or [_SLIDING if window else _FULL] * num_layers
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise InvalidInput(
                f"the torch engine does not know attention of kind {kind!r}",
                field="base_model",
                hint=f"it knows {_FULL} and {_SLIDING}",
            )
    return tuple(window if kind == _SLIDING else None for kind in kinds)
