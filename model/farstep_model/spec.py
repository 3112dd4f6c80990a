"""What a run asks of its adapter: rank, scaling, dropout, which layers, and what goes beside them.

Plain values, checked once; which layers they mean in a given model is decided in `lora`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2 as pb
from farstep_proto.validation import resolve_lora


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The settings of one adapter; the update of a layer is `scaling · B·A`.

    Args:
        alpha: absent (or 0) means `rank`, a scaling of 1 (of √rank with `use_rslora`).
        target_modules: names of layers, whole or as a suffix (`q_proj`, `layers.3.mlp.up_proj`); where given, they
            alone decide and the switches are not looked at.
        train_attn: every linear layer of the attention blocks.
        train_mlp: every linear layer of the feed-forward blocks, experts included, routers not.
        train_unembed: the output layer.
        use_rslora: a scaling of alpha / √rank instead of alpha / rank (Kalajdzievski 2023, arXiv:2312.03732).
        use_dora: weight-decomposed: a magnitude is trained for each output of a layer, beside the direction
            (Liu et al. 2024, arXiv:2402.09353).
        value_head: a linear layer from the last hidden state to one number is trained along (`value_head`).

    Raises:
        InvalidInput: naming the field, as `lora.rank`.
    """

    rank: int
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    value_head: bool = False

    def __post_init__(self) -> None:
        if any(not name.strip(".") for name in self.target_modules):
            raise InvalidInput("a name is empty", field="lora.target_modules")
        object.__setattr__(self, "alpha", resolve_lora(self.to_proto()).alpha)

    @property
    def scaling(self) -> float:
        return float(self.alpha or self.rank) / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @classmethod
    def from_proto(cls, message: pb.LoraConfig) -> LoraSpec:
        lora = resolve_lora(message)
        return cls(
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=tuple(lora.target_modules),
            train_attn=lora.train_attn,
            train_mlp=lora.train_mlp,
            train_unembed=lora.train_unembed,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            value_head=lora.value_head,
        )

    def to_proto(self) -> pb.LoraConfig:
        return pb.LoraConfig(
            rank=self.rank,
            alpha=self.alpha or 0.0,
            dropout=self.dropout,
            target_modules=self.target_modules,
            train_attn=self.train_attn,
            train_mlp=self.train_mlp,
            train_unembed=self.train_unembed,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            value_head=self.value_head,
        )
