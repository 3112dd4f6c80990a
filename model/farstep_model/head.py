"""From hidden states to logits: the output layer with the scaling and the cap that some architectures add.

Computing logits apart from the rest of the model is what lets log-probabilities be taken in chunks. This module does
not trust a table of architectures: it reads the candidates from the config, and takes the one that reproduces the
model's own logits, or refuses the model.

Shapes: B batch rows, T positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from farstep_proto.errors import InvalidInput

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_NUM_PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Head:
    """From the output layer's result z: `softcap · tanh(scale · z / softcap)`, without a cap `scale · z`."""

    scale: float = 1.0
    softcap: float | None = None

    def finish(self, raw: Tensor) -> Tensor:
        """Logits in fp32 from the output layer's result, of the same shape."""
        logits = raw.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def find_head(model: PreTrainedModel) -> Head:
    """The head that makes `head.finish(output_layer(hidden))` equal to `model(ids).logits`.

    Raises:
        InvalidInput: the model has no output layer, or none of the known heads reproduces its logits.
    """
    output_layer = model.get_output_embeddings()
    if output_layer is None or model.base_model is model:
        raise InvalidInput(f"{type(model).__name__} is not a causal language model", field="base_model")
    ids_BT = torch.arange(_NUM_PROBE_TOKENS, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        expected = model(input_ids=ids_BT, use_cache=False).logits.float()
        raw = output_layer(model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state)
    largest = expected.abs().max().clamp_min(1.0)
    for head in _candidates(model.config.get_text_config()):
        if (
            raw.shape == expected.shape
            and (head.finish(raw) - expected).abs().max() <= _TOLERANCE[model.dtype] * largest
        ):
            return head
    raise InvalidInput(
        f"{type(model).__name__} does more between its hidden states and its logits than is known here",
        field="base_model",
        hint="known are a plain output layer, logit_scale, logits_scaling and final_logit_softcapping",
    )


def _candidates(config: PretrainedConfig) -> Iterator[Head]:
    """From the most particular to the plain one, so that a cap too large to show in the probe is still kept."""
    scales = [1.0]
    if logits_scaling := getattr(config, "logits_scaling", None):
        scales = [1.0 / logits_scaling, logits_scaling, *scales]
    if logit_scale := getattr(config, "logit_scale", None):
        scales = [logit_scale, *scales]
    softcap = getattr(config, "final_logit_softcapping", None)
    for cap in (softcap, None) if softcap else (None,):
        for scale in scales:
            yield Head(scale=float(scale), softcap=cap)
