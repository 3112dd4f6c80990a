"""A run's value head: one linear layer in fp32, from a last hidden state to the value of what was read so far.

It stands beside an adapter and is trained with it; the output layer and the vocabulary have no part in it. It begins at
zero (Ziegler et al. 2019's released code, whose value head "N Implementation Details of RLHF with PPO" of Huang et al.
2023 describes): a fresh critic says 0 everywhere, its first gradient reaches the head alone and sends no noise into an
adapter that a policy may share, and no random number is drawn, so that a run's adapter is the same with it or without.

In files it has the names that TRL gave it (`v_head.summary`), in a file of its own: PEFT's files stay PEFT's.

Shapes: N tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from farstep_model.load import BaseModel
from farstep_proto.errors import InvalidInput

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


@dataclass(frozen=True, slots=True, eq=False)
class ValueHead:
    """`weight` [1, D] and `bias` [1], in fp32."""

    weight: nn.Parameter
    bias: nn.Parameter

    @classmethod
    def fresh(cls, base: BaseModel) -> ValueHead:
        num_hidden = base.model.get_output_embeddings().in_features
        return cls._of(torch.zeros(1, num_hidden, device=base.device), torch.zeros(1, device=base.device))

    def values(self, hidden_ND: Tensor) -> Tensor:
        """[N] in fp32, whatever the dtype of the last hidden states."""
        return functional.linear(hidden_ND.float(), self.weight, self.bias)[:, 0]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {WEIGHT: self.weight, BIAS: self.bias}

    def clone(self) -> ValueHead:
        """An independent copy, bit for bit."""
        return self._of(self.weight.detach().clone(), self.bias.detach().clone())

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = {name: parameter.detach().cpu() for name, parameter in self.named_parameters().items()}
        data: bytes = save(tensors, metadata={"format": "pt"})
        return data

    @classmethod
    def from_bytes(cls, base: BaseModel, data: bytes, *, field: str) -> ValueHead:
        """The head that `to_bytes` wrote, bit for bit; `field` names it in an error.

        Raises:
            InvalidInput: the bytes are no such file, or of another model.
        """
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise InvalidInput(f"not a safetensors file: {error}", field=field) from error
        expected = {name: parameter.shape for name, parameter in cls.fresh(base).named_parameters().items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            raise InvalidInput(f"it is no value head of this base model: {_shapes(found)}", field=field)
        return cls._of(*(tensors[name].to(base.device, torch.float32) for name in (WEIGHT, BIAS)))

    @classmethod
    def _of(cls, weight_1D: Tensor, bias_1: Tensor) -> ValueHead:
        return cls(nn.Parameter(weight_1D), nn.Parameter(bias_1))


def _shapes(found: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(found.items())) or "no tensors"
