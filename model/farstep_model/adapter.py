"""What one run trains, in fp32: LoRA weights, and beside them a value head where it has one.

The LoRA weights have a way to bytes and files and back; the head, which no sampler needs, has its own.

Its invariant: parameters come in one stable order, under PEFT's names, and the same seed gives the same bits on every
device. What an adapter computes is decided in `lora`; how it is trained is none of its business.

Shapes: r rank, I inputs of a layer, O outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from farstep_model import peft_format
from farstep_model.dora import row_norms, stretch
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_model.value_head import ValueHead
from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import Output


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """`a` [r, I] and `b` [O, r] of one layer, and with DoRA the magnitudes `m` [O]."""

    a: nn.Parameter
    b: nn.Parameter
    m: nn.Parameter | None = None

    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.a, self.b) if self.m is None else (self.a, self.b, self.m)


class Adapter:
    """The weights of one adapter on given layers. Made by `init`, `from_bytes`, `from_files` or `clone`.

    `weights` maps a layer's number in `LoraLayers` to its matrices, ascending.
    """

    def __init__(
        self,
        layers: LoraLayers,
        spec: LoraSpec,
        weights: Mapping[int, LayerWeights],
        value_head: ValueHead | None = None,
    ) -> None:
        self.layers = layers
        self.spec = spec
        self.weights = weights
        self.value_head = value_head

    @classmethod
    def init(cls, layers: LoraLayers, spec: LoraSpec, *, seed: int) -> Adapter:
        """A fresh adapter that changes nothing yet: A Kaiming-uniform as in PEFT (a=√5), B zero, magnitudes the base's.

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
            a_rI, b_Or = a_rI.to(layers.base.device), torch.zeros(linear.out_features, spec.rank)
            b_Or = b_Or.to(layers.base.device)
            m_O = row_norms(linear.weight, a_rI, b_Or, scaling=spec.scaling) if spec.use_dora else None
            weights[layer] = _trained(a_rI, b_Or, m_O)
        return cls(layers, spec, weights, ValueHead.fresh(layers.base) if spec.value_head else None)

    def parameters(self) -> list[nn.Parameter]:
        """A, B and with DoRA the magnitudes of each layer in the model's order, then those of the value head."""
        return [*self._named_lora().values(), *self._named_head().values()]

    def names(self) -> list[str]:
        """The key of each parameter, PEFT's for the adapter's, aligned with `parameters`."""
        return [*self._named_lora(), *self._named_head()]

    def reached_by(self, output: Output) -> list[bool]:
        """Of each parameter, whether `output` depends on it, aligned with `parameters`.

        Log-probabilities do not depend on the value head, and values not on the output layer.
        """
        is_value = output == "values"
        of_layers = [
            not is_value or self.layers.targets[layer].kind != "unembed"
            for layer, weights in self.weights.items()
            for _ in weights.parameters()
        ]
        return [*of_layers, *(is_value for _ in self._named_head())]

    def state_dict(self) -> dict[str, Tensor]:
        """The LoRA weights by PEFT's key: detached, on their device, sharing memory."""
        return {name: parameter.detach() for name, parameter in self._named_lora().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies LoRA weights in; nothing is changed unless everything fits.

        Raises:
            InvalidInput: a key too many or too few, or another shape.
        """
        named = self._named_lora()
        if odd := sorted(named.keys() ^ state.keys()):
            what = "is missing" if odd[0] in named else "belongs to no layer of this adapter"
            raise InvalidInput(f"{odd[0]} {what} ({len(odd)} keys differ)", field=odd[0])
        for name, parameter in named.items():
            if state[name].shape != parameter.shape:
                raise InvalidInput(f"shape {list(state[name].shape)}, expected {list(parameter.shape)}", field=name)
        for name, parameter in named.items():
            parameter.copy_(state[name])

    def is_fresh(self) -> bool:
        """Whether it computes nothing, as one that was just made, and says that everything is worth 0."""
        head = () if self.value_head is None else self.value_head.named_parameters().values()
        return not any(bool(zero.any()) for zero in (*(weights.b for weights in self.weights.values()), *head)) and all(
            not bool(self.stretch_of(layer).any()) for layer, weights in self.weights.items() if weights.m is not None
        )

    def stretch_of(self, layer: int) -> Tensor:
        """By how much of itself DoRA makes each row of a layer's weight longer, [O]; differentiable by magnitude."""
        weights = self.weights[layer]
        assert weights.m is not None
        weight_OI = self.layers.linears[layer].weight
        return stretch(weights.m, row_norms(weight_OI, weights.a, weights.b, scaling=self.spec.scaling))

    def clone(self) -> Adapter:
        """An independent copy, bit for bit."""
        weights = {
            layer: _trained(*(parameter.detach().clone() for parameter in w.parameters()))
            for layer, w in self.weights.items()
        }
        return Adapter(self.layers, self.spec, weights, self.value_head.clone() if self.value_head else None)

    def peft_config(self, base_model_name: str) -> dict[str, object]:
        """The content of PEFT's `adapter_config.json`."""
        return peft_format.config(
            self.spec, base_model_name=base_model_name, target_modules=self.layers.module_names(list(self.weights))
        )

    def to_bytes(self) -> bytes:
        """All that samplers need in one safetensors blob; its metadata carries PEFT's config under `adapter_config`.

        The same adapter always gives the same bytes.
        """
        config = peft_format.encode_config(self.peft_config(self.layers.base.name))
        # One entry only: the library writes several in an order that changes from call to call.
        return bytes(save(self._tensors_on_cpu(), metadata={"adapter_config": config.decode()}))

    @classmethod
    def from_bytes(cls, layers: LoraLayers, data: bytes) -> Adapter:
        """The adapter that `to_bytes` wrote, bit for bit; without a value head.

        Its spec names its layers in `target_modules`, whatever switches chose them.

        Raises:
            InvalidInput: the bytes are no such blob, or of another model.
        """
        peft_format.check_header(data, num_layers=len(layers.targets), field="adapter")
        config = peft_format.metadata(data).get("adapter_config")
        if config is None:
            raise InvalidInput("no adapter_config in the metadata", field="adapter")
        return cls.from_files(layers, {peft_format.TENSORS_FILE: data, peft_format.CONFIG_FILE: config.encode()})

    def files(self, base_model_name: str) -> dict[str, bytes]:
        """The LoRA weights in PEFT's format; plain `peft` loads a folder with these files."""
        return {
            peft_format.TENSORS_FILE: save(self._tensors_on_cpu(), metadata={"format": "pt"}),
            peft_format.CONFIG_FILE: peft_format.encode_config(self.peft_config(base_model_name)),
        }

    @classmethod
    def from_files(cls, layers: LoraLayers, files: Mapping[str, bytes]) -> Adapter:
        """An adapter from PEFT's files, ours or anyone's; without a value head.

        Raises:
            InvalidInput: a file is missing or broken, a setting is not understood, or a tensor does not fit.
        """
        for name in (peft_format.CONFIG_FILE, peft_format.TENSORS_FILE):
            if name not in files:
                raise InvalidInput(f"{name} is missing", field=name)
        spec = peft_format.read_config(files[peft_format.CONFIG_FILE])
        tensors = _tensors_of(files[peft_format.TENSORS_FILE], num_layers=len(layers.targets))
        _drop_base_weights(layers, tensors)
        chosen = _layers_of(layers, tensors)
        spec = dataclasses.replace(spec, target_modules=layers.module_names(chosen))
        adapter = cls(layers, spec, {layer: _unset(layers, layer, spec) for layer in chosen})
        adapter.load_state_dict(tensors)
        return adapter

    def _named_lora(self) -> dict[str, nn.Parameter]:
        targets = self.layers.targets
        return {
            key: parameter
            for layer, weights in self.weights.items()
            for key, parameter in zip(
                peft_format.tensor_keys(targets[layer].name, use_dora=self.spec.use_dora),
                weights.parameters(),
                strict=True,
            )
        }

    def _named_head(self) -> dict[str, nn.Parameter]:
        return self.value_head.named_parameters() if self.value_head else {}

    def _tensors_on_cpu(self) -> dict[str, Tensor]:
        return {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}


def _tensors_of(data: bytes, *, num_layers: int) -> dict[str, Tensor]:
    peft_format.check_header(data, num_layers=num_layers)
    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise InvalidInput(f"not a safetensors file: {error}", field=peft_format.TENSORS_FILE) from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InvalidInput(f"{tensor.dtype} is not floating point", field=name)
    return tensors


def _trained(a_rI: Tensor, b_Or: Tensor, m_O: Tensor | None = None) -> LayerWeights:
    return LayerWeights(nn.Parameter(a_rI), nn.Parameter(b_Or), None if m_O is None else nn.Parameter(m_O))


def _unset(layers: LoraLayers, layer: int, spec: LoraSpec) -> LayerWeights:
    """Of the right shapes, to be written over."""
    linear, device = layers.linears[layer], layers.base.device
    return _trained(
        torch.empty(spec.rank, linear.in_features, device=device),
        torch.empty(linear.out_features, spec.rank, device=device),
        torch.empty(linear.out_features, device=device) if spec.use_dora else None,
    )


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
