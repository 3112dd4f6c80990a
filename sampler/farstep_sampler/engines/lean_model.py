"""The forward pass of the Llama family without the modules around it, for models too small to hide what those cost.

Recognised by structure: RMSNorm before attention and before a gated MLP, rotary positions, optional norms of query and
key, optional biases; so are Llama, Mistral, Qwen2, Qwen3 and their kin. The weights stay the transformers model's own,
its linear layers keep their adapters. What looks alike but is not is found by comparison (`model_pass`), and runs
through transformers, as does everything else. Each operation works row by row: numbers do not depend on the company.

Shapes: N tokens, D hidden size, Q query heads, H key heads, S head size, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from farstep_model.load import BaseModel
from farstep_model.merged import MergedLinear
from farstep_sampler.engines.attention import Pass, Rule

_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_QUERY_KEY_NORMS = {"q_norm", "k_norm"}
_MOST_TABLE = 1 << 26  # numbers in a table of all positions; more are computed as they come


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    weight: Tensor
    epsilon: float

    def __call__(self, x_ND: Tensor) -> Tensor:
        return torch.rms_norm(x_ND, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """`head_norm` multiplies normalised queries and keys, [Q + H, S]; `size` is S."""

    size: int
    before_attention: _Norm
    query_key_value: MergedLinear
    head_norm: _Norm | None
    rule: Rule
    output: nn.Linear
    before_mlp: _Norm
    gate_up: MergedLinear
    activation: nn.Module
    down: nn.Linear

    def attend(self, layer: int, x_ND: Tensor, cos_N1S: Tensor, sin_N1S: Tensor, passed: Pass) -> Tensor:
        size, num_tokens = self.size, x_ND.shape[0]
        heads = self.query_key_value.forward(self.before_attention(x_ND)).view(num_tokens, -1, size)
        num_keys = self.query_key_value.sizes[1] // size
        pairs = heads[:, :-num_keys]
        if self.head_norm is not None:
            pairs = torch.rms_norm(pairs, (size,), None, self.head_norm.epsilon).mul_(self.head_norm.weight)
        pairs = torch.addcmul(pairs * cos_N1S, pairs.roll(size // 2, -1), sin_N1S)
        passed.write(layer, pairs[:, -num_keys:], heads[:, -num_keys:])
        attended_NQS = passed.attend(layer, pairs[:, :-num_keys], size, self.rule)
        return self.output.forward(attended_NQS.flatten(1))

    def transform(self, x_ND: Tensor) -> Tensor:
        gate, up = self.gate_up.forward(self.before_mlp(x_ND)).chunk(2, dim=-1)
        return self.down.forward(self.activation(gate).mul_(up))


@dataclass(frozen=True, slots=True, eq=False)
class LeanModel:
    """A model's layers; `rotations` [P, 2, S] are the cosines and signed sines of every position."""

    embedding: nn.Embedding
    layers: tuple[_Layer, ...]
    norm: _Norm
    rotary: nn.Module
    rotations: Tensor | None

    @staticmethod
    @torch.no_grad()
    def fits(base: BaseModel) -> bool:
        """Whether the model is built this way, as far as can be seen without computing."""
        model = base.model.base_model
        if not _is_known(model):
            return False
        sizes = {block.self_attn.head_dim for block in model.layers}
        return sizes == {
            _rotations(model.rotary_emb, torch.zeros(1, dtype=torch.long, device=base.device), base.dtype).shape[-1]
        }

    @classmethod
    @torch.no_grad()
    def of(cls, base: BaseModel, windows: Sequence[int | None]) -> LeanModel:
        """For a model that fits; merges its products that share an input."""
        model = base.model.base_model
        layers = tuple(_layer(block, window) for block, window in zip(model.layers, windows, strict=True))
        rotary, rotations = cast(nn.Module, model.rotary_emb), None
        if 2 * base.max_seq_len * layers[0].size <= _MOST_TABLE:
            rotations = _rotations(rotary, torch.arange(base.max_seq_len, device=base.device), base.dtype)
        return cls(cast(nn.Embedding, model.embed_tokens), layers, _norm(model.norm), rotary, rotations)

    def hidden_states(self, tokens_N: Tensor, positions_N: Tensor, passed: Pass) -> Tensor:
        """[N, D], normalised, with the adapters that are active; keys and values are kept by the pass."""
        x_ND = functional.embedding(tokens_N, self.embedding.weight)
        if self.rotations is None:
            rotations_N2S = _rotations(self.rotary, positions_N, x_ND.dtype)
        else:
            rotations_N2S = self.rotations.index_select(0, positions_N)
        cos_N1S, sin_N1S = rotations_N2S[:, :1], rotations_N2S[:, 1:]
        for number, layer in enumerate(self.layers):
            x_ND = layer.attend(number, x_ND, cos_N1S, sin_N1S, passed).add_(x_ND)
            x_ND = layer.transform(x_ND).add_(x_ND)
        return self.norm(x_ND)


def _rotations(rotary: nn.Module, positions_P: Tensor, dtype: torch.dtype) -> Tensor:
    """[P, 2, S]: x·cos + roll(x)·sin turns the pairs (x_i, x_{i+S/2}); the first half of the sines is negative."""
    probe = torch.zeros((), dtype=dtype, device=positions_P.device)
    cos_PS, sin_PS = (x[0] for x in rotary(probe, position_ids=positions_P[None]))
    half = sin_PS.shape[-1] // 2
    return torch.stack([cos_PS, torch.cat([-sin_PS[:, :half], sin_PS[:, half:]], dim=-1)], dim=1)


def _layer(block: nn.Module, window: int | None) -> _Layer:
    attention, mlp = cast(nn.Module, block.self_attn), cast(nn.Module, block.mlp)
    query, key, value = (cast(nn.Linear, attention.get_submodule(f"{x}_proj")) for x in ("q", "k", "v"))
    head_norm, size = None, cast(int, attention.head_dim)
    if hasattr(attention, "q_norm"):
        by_query, by_key = _norm(attention.q_norm), _norm(attention.k_norm)
        num_queries, num_keys = query.out_features // size, key.out_features // size
        weight = torch.cat([by_query.weight.expand(num_queries, -1), by_key.weight.expand(num_keys, -1)])
        head_norm = _Norm(weight, by_query.epsilon)
    return _Layer(
        size=size,
        before_attention=_norm(block.input_layernorm),
        query_key_value=MergedLinear.of(query, key, value),
        head_norm=head_norm,
        rule=Rule(cast(float, attention.scaling), None, window),
        output=cast(nn.Linear, attention.o_proj),
        before_mlp=_norm(block.post_attention_layernorm),
        gate_up=MergedLinear.of(cast(nn.Linear, mlp.gate_proj), cast(nn.Linear, mlp.up_proj)),
        activation=cast(nn.Module, mlp.act_fn),
        down=cast(nn.Linear, mlp.down_proj),
    )


def _norm(module: object) -> _Norm:
    assert isinstance(module, nn.Module)
    return _Norm(cast(Tensor, module.weight), cast(float, module.variance_epsilon))


def _is_known(model: nn.Module) -> bool:
    if _children(model) != {"embed_tokens", "layers", "norm", "rotary_emb"} or not _is_norm(model.norm):
        return False
    rope = getattr(model.rotary_emb, "rope_type", "")
    # Those two turn by angles that depend on the longest sequence in the batch.
    is_fixed = isinstance(rope, str) and bool(rope) and "dynamic" not in rope and rope != "longrope"
    blocks = list(cast(nn.ModuleList, model.layers))
    return type(model.embed_tokens) is nn.Embedding and is_fixed and bool(blocks) and all(map(_is_known_block, blocks))


def _is_known_block(block: nn.Module) -> bool:
    if _children(block) != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return False
    attention, mlp = cast(nn.Module, block.self_attn), cast(nn.Module, block.mlp)
    parts = _children(attention)
    if parts not in (_ATTENTION, _ATTENTION | _QUERY_KEY_NORMS):
        return False
    if _children(mlp) != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    linears = [attention.get_submodule(name) for name in _ATTENTION] + [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [attention.get_submodule(name) for name in parts & _QUERY_KEY_NORMS]
    return (
        all(isinstance(linear, nn.Linear) for linear in linears)
        and all(map(_is_norm, norms))
        and all(isinstance(getattr(attention, name, None), int | float) for name in ("head_dim", "scaling"))
        and _fits(attention)
    )


def _fits(attention: nn.Module) -> bool:
    """Whether keys and values have heads of the same size, and norms are those of one head."""
    size = cast(int, attention.head_dim)
    widths = [cast(nn.Linear, attention.get_submodule(f"{x}_proj")).out_features for x in ("k", "v")]
    norms = [attention.get_submodule(name) for name in _children(attention) & _QUERY_KEY_NORMS]
    return widths[0] == widths[1] and all(cast(Tensor, norm.weight).shape == (size,) for norm in norms)


def _is_norm(module: object) -> bool:
    return (
        isinstance(module, nn.Module)
        and not _children(module)
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and isinstance(getattr(module, "variance_epsilon", None), float)
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
