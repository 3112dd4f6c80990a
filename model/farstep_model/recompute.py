"""Gradient checkpointing: what happens inside a decoder layer is not kept for the backward pass, but computed again.

By torch's own non-reentrant checkpoint, which frozen layers and inputs without gradients do not disturb. transformers'
switch for it is not used: it works in training mode only, which would let the base model drop out.

Invariant: a layer is computed again with the adapters that were active the first time, and with the same random
numbers, whatever is active by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from farstep_model.lora import LoraLayers, Switch
from farstep_proto.errors import InvalidInput


def enable_recomputation(layers: LoraLayers) -> None:
    """For every decoder layer, for good. Passes without gradients stay as they are.

    Raises:
        InvalidInput: the model does not say what its layers are.
    """
    blocks = [module for module in layers.base.model.get_decoder().modules() if _is_block(module)]
    inner = {id(module) for block in blocks for module in block.modules() if module is not block}
    blocks = [block for block in blocks if id(block) not in inner]
    if not blocks:
        raise InvalidInput(
            f"{type(layers.base.model).__name__} has no layers that can be computed again",
            field="gradient_checkpointing",
        )
    for block in blocks:
        block.forward = _recomputed(block.forward, layers.switch)


def _is_block(module: torch.nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer)


def _recomputed(forward: Callable[..., Any], switch: Switch) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        source, training = switch.source, switch.training

        def compute(*inputs: Any) -> Any:
            with switch.using(source, training=training):
                return forward(*inputs, **kwargs)

        return checkpoint(compute, *args, use_reentrant=False)

    return run
