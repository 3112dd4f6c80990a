"""One run's LoRA weights in fp32, and their way to bytes and files and back.

Its invariant: parameters come in one stable order, under PEFT's names, and the same seed gives the same bits on every
device. What an adapter computes is decided in `lora`; how it is trained is none of its business.

Shapes: r rank, I inputs of a layer, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from farstep_model import peft_format
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """`a` [r, I] and `b` [O, r] of one layer."""

    a: nn.Parameter
    b: nn.Parameter


class Adapter:
    """The weights of one adapter on given layers. Made by `init`, `from_bytes`, `from_files` or `clone`.

    `weights` maps a layer's number in `LoraLayers` to its matrices, ascending.
    """

    def __init__(self, layers: LoraLayers, spec: LoraSpec, weights: Mapping[int, LayerWeights]) -> None:
        self.layers = layers
        self.spec = spec
        self.weights = weights

    @classmethod
    def init(cls, layers: LoraLayers, spec: LoraSpec, *, seed: int) -> Adapter:
        """A fresh adapter that changes nothing yet: A Kaiming-uniform as in PEFT (a=√5), B zero.

        Drawn on the CPU from a generator of its own: the same seed gives the same bits, whatever the device and the
        state of the global generator.

        Raises:
            InvalidInput: the spec names layers that are not there.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for layer in layers.select(spec):
            linear = layers.linears[layer]
            a_rI = torch.empty(spec.rank, linear.in_features)
            nn.init.kaiming_uniform_(a_rI, a=math.sqrt(5), generator=generator)
            weights[layer] = _on_device(layers, a_rI, torch.zeros(linear.out_features, spec.rank))
        return cls(layers, spec, weights)

    def parameters(self) -> list[nn.Parameter]:
        """A and B of each layer in the model's order."""
        return [matrix for weights in self.weights.values() for matrix in (weights.a, weights.b)]

    def names(self) -> list[str]:
        """PEFT's key of each parameter, aligned with `parameters`."""
        targets = self.layers.targets
        return [key for layer in self.weights for key in peft_format.tensor_keys(targets[layer].name)]

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by PEFT's key: detached, on their device, sharing memory."""
        return {name: parameter.detach() for name, parameter in zip(self.names(), self.parameters(), strict=True)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies values in; nothing is changed unless everything fits.

        Raises:
            InvalidInput: a key too many or too few, or another shape.
        """
        named = dict(zip(self.names(), self.parameters(), strict=True))
        if odd := sorted(named.keys() ^ state.keys()):
            what = "is missing" if odd[0] in named else "belongs to no layer of this adapter"
            raise InvalidInput(f"{odd[0]} {what} ({len(odd)} keys differ)", field=odd[0])
        for name, parameter in named.items():
            if state[name].shape != parameter.shape:
                raise InvalidInput(f"shape {list(state[name].shape)}, expected {list(parameter.shape)}", field=name)
        for name, parameter in named.items():
            parameter.copy_(state[name])

    def clone(self) -> Adapter:
        """An independent copy, bit for bit."""
        weights = {
            layer: LayerWeights(nn.Parameter(w.a.detach().clone()), nn.Parameter(w.b.detach().clone()))
            for layer, w in self.weights.items()
        }
        return Adapter(self.layers, self.spec, weights)

    def peft_config(self, base_model_name: str) -> dict[str, object]:
        """The content of PEFT's `adapter_config.json`."""
        return peft_format.config(
            self.spec, base_model_name=base_model_name, target_modules=self.layers.module_names(list(self.weights))
        )

    def to_bytes(self) -> bytes:
        """Everything in one safetensors blob; its metadata carries PEFT's config under `adapter_config`.

        The same adapter always gives the same bytes.
        """
        config = peft_format.encode_config(self.peft_config(self.layers.base.name))
        # One entry only: the library writes several in an order that changes from call to call.
        return bytes(save(self._tensors_on_cpu(), metadata={"adapter_config": config.decode()}))

    @classmethod
    def from_bytes(cls, layers: LoraLayers, data: bytes) -> Adapter:
        """The adapter that `to_bytes` wrote, bit for bit.

        Its spec names its layers in `target_modules`, whatever switches chose them.

        Raises:
            InvalidInput: the bytes are no such blob, or of another model.
        """
        config = peft_format.metadata(data).get("adapter_config")
        if config is None:
            raise InvalidInput("no adapter_config in the metadata", field="adapter")
        return cls.from_files(layers, {peft_format.TENSORS_FILE: data, peft_format.CONFIG_FILE: config.encode()})

    def files(self, base_model_name: str) -> dict[str, bytes]:
        """The files of a checkpoint in PEFT's format; plain `peft` loads a folder with them."""
        return {
            peft_format.TENSORS_FILE: save(self._tensors_on_cpu(), metadata={"format": "pt"}),
            peft_format.CONFIG_FILE: peft_format.encode_config(self.peft_config(base_model_name)),
        }

    @classmethod
    def from_files(cls, layers: LoraLayers, files: Mapping[str, bytes]) -> Adapter:
        """An adapter from PEFT's files, ours or anyone's.

        Raises:
            InvalidInput: a file is missing or broken, a setting is more than plain LoRA, or a tensor does not fit.
        """
        for name in (peft_format.CONFIG_FILE, peft_format.TENSORS_FILE):
            if name not in files:
                raise InvalidInput(f"{name} is missing", field=name)
        rank, alpha, dropout = peft_format.read_config(files[peft_format.CONFIG_FILE])
        try:
            tensors = load(files[peft_format.TENSORS_FILE])
        except SafetensorError as error:
            raise InvalidInput(f"not a safetensors file: {error}", field=peft_format.TENSORS_FILE) from error
        _drop_base_weights(layers, tensors)
        chosen = _layers_of(layers, tensors)
        spec = LoraSpec(rank=rank, alpha=alpha, dropout=dropout, target_modules=layers.module_names(chosen))
        weights = {
            layer: _on_device(
                layers,
                torch.empty(rank, layers.linears[layer].in_features),
                torch.empty(layers.linears[layer].out_features, rank),
            )
            for layer in chosen
        }
        adapter = cls(layers, spec, weights)
        adapter.load_state_dict(tensors)
        return adapter

    def _tensors_on_cpu(self) -> dict[str, Tensor]:
        return {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}


def _on_device(layers: LoraLayers, a_rI: Tensor, b_Or: Tensor) -> LayerWeights:
    device = layers.base.device
    return LayerWeights(nn.Parameter(a_rI.to(device)), nn.Parameter(b_Or.to(device)))


def _layers_of(layers: LoraLayers, tensors: Mapping[str, Tensor]) -> Sequence[int]:
    """Numbers of the layers that the tensors are for; a key that is for none is found by `load_state_dict`."""
    chosen = [
        layer
        for layer, target in enumerate(layers.targets)
        if any(key in tensors for key in peft_format.tensor_keys(target.name))
    ]
    if not chosen:
        raise InvalidInput(
            "no tensor is for a layer of this model", field=peft_format.TENSORS_FILE, hint="is it for another base?"
        )
    return chosen


def _drop_base_weights(layers: LoraLayers, tensors: dict[str, Tensor]) -> None:
    """Removes the copy of the output layer that PEFT adds when it is adapted.

    Raises:
        InvalidInput: the copy is not the base's own weight, so that the adapter belongs to another one.
    """
    for target, linear in zip(layers.targets, layers.linears, strict=True):
        key = peft_format.base_weight_key(target.name)
        if target.kind == "unembed" and key in tensors:
            copy, weight = tensors.pop(key), linear.weight
            is_ours = copy.shape == weight.shape if weight.is_meta else torch.equal(copy.to(weight), weight)
            if not is_ours:  # of a skeleton's layer, the shape is all that is known
                raise InvalidInput("it is not the output layer of this base model", field=key)
