"""How much arithmetic a training step is: what the model needs, whoever computes it and however often.

A forward pass multiplies each token with every weight, 2 operations a weight. The backward pass of LoRA takes the
gradient of the activations through the same weights, 2 more, and none of the frozen weights themselves; only A and B
take all 6. Causal attention is 2·L²·H·E a layer and sequence forward (queries with keys, weights with values, half of
the square), twice that backward. Recomputation is not counted: what it costs shows as a lower utilisation.

The counting is that of Kaplan et al. 2020 (arXiv:2001.08361, section 2.1), without the frozen weights' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

from farstep_model.adapter import Adapter


def step_flops(adapter: Adapter, lengths: Sequence[int]) -> float:
    """Of one forward and backward pass over sequences of these lengths, of which every token counts."""
    model = adapter.layers.base.model
    config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    in_products = sum(p.numel() for p in model.parameters() if p.dim() == 2 and p is not embeddings)
    if head is embeddings:
        in_products += head.numel()
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * head_dim * 6 * sum(n * n for n in lengths)
    return float(sum(lengths) * (4 * in_products + 6 * trained) + attention)
