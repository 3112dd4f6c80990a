"""LoRA inside an unmodified transformers model: linear layers that add the update of whichever adapter is active.

The layers are put in once and hold no weights of any adapter. What is active is set around a pass, for one adapter or
for an adapter index per batch row, and each row's numbers are what they would be alone. Without anything active the
model computes exactly what it did before.

The low-rank path runs in the dtype of the base: adapters stay fp32 where they are kept and trained, and are rounded at
use, as every mixed-precision matrix product does; on an fp32 base nothing is rounded.

Shapes: B batch rows, T positions, N tokens, I inputs of a layer, O outputs, r rank, n adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from farstep_model.dora import stretched
from farstep_model.load import BaseModel
from farstep_model.products import adapted_linear, frozen_linear
from farstep_model.spec import LoraSpec
from farstep_model.targets import Target, find_fused_experts, find_targets, select_targets, shortest_names
from farstep_proto.errors import InvalidInput

if TYPE_CHECKING:
    from farstep_model.adapter import Adapter, LayerWeights
    from farstep_model.prepared import PreparedWeight


class DeltaSource(Protocol):
    """Adapters that are active: trained ones here, a sampler's slots in `slots`."""

    def apply(self, linear: LoraLinear, x: Tensor) -> Tensor:
        """The layer's output [B, …, O] for its input `x` [B, …, I], the update included."""
        ...

    def with_rows(self, rows: Tensor) -> DeltaSource:
        """The same adapters with another adapter index per row, on the CPU."""
        ...

    def is_mixed(self, layer: int) -> bool:
        """Whether the layer's update depends on the row."""
        ...


@dataclass(slots=True)
class Switch:
    """What all layers of one model look at: the only mutable state."""

    source: DeltaSource | None = None
    training: bool = False

    @contextmanager
    def using(self, source: DeltaSource | None, *, training: bool) -> Iterator[None]:
        before = self.source, self.training
        self.source, self.training = source, training
        try:
            yield
        finally:
            self.source, self.training = before


class LoraLinear(nn.Linear):
    """A linear layer that shares its weight with the one it replaces, and asks the switch for an update."""

    def __init__(self, replaced: nn.Linear, *, layer: int, is_routed: bool, switch: Switch) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = replaced.in_features, replaced.out_features
        self.weight, self.bias = replaced.weight, replaced.bias
        self.layer, self.is_routed, self.switch = layer, is_routed, switch
        self.prepared: PreparedWeight | None = None
        self.train(replaced.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        source = self.switch.source
        if source is None:
            return self.base_output(input)
        if self.is_routed and source.is_mixed(self.layer):
            raise _rows_unknown(input)
        return source.apply(self, input)

    def base_output(self, x: Tensor) -> Tensor:
        """What the layer gives without an adapter, for samplers and for the bare model."""
        if self.prepared is not None and not torch.is_grad_enabled():
            return self.prepared.product(x)
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayers:
    """The adaptable layers of one base model, in the model's order; a layer's number is its place here."""

    base: BaseModel
    targets: tuple[Target, ...]
    linears: tuple[LoraLinear, ...]
    switch: Switch

    @classmethod
    def install(cls, base: BaseModel) -> LoraLayers:
        """Puts the layers into the model, once.

        Raises:
            InvalidInput: the model has no plain linear layer in its blocks.
        """
        targets = find_targets(base.model)
        if not targets:
            raise InvalidInput(f"{type(base.model).__name__} has no linear layer to adapt", field="base_model")
        switch, linears = Switch(), []
        for layer, target in enumerate(targets):
            parent, _, leaf = target.name.rpartition(".")
            replaced = cast(nn.Linear, base.model.get_submodule(target.name))
            linear = LoraLinear(replaced, layer=layer, is_routed=target.is_routed, switch=switch)
            setattr(base.model.get_submodule(parent), leaf, linear)
            linears.append(linear)
        return cls(base, targets, tuple(linears), switch)

    def select(self, spec: LoraSpec) -> tuple[int, ...]:
        """Numbers of the layers that a spec means, ascending.

        Raises:
            InvalidInput: naming `lora.target_modules` or `lora`.
        """
        return select_targets(self.targets, spec, fused=find_fused_experts(self.base.model))

    def module_names(self, layers: Sequence[int]) -> tuple[str, ...]:
        """The shortest `target_modules` that mean exactly these layers."""
        return shortest_names(self.targets, layers)

    @contextmanager
    def active(self, adapters: Sequence[Adapter | None], rows_B: Tensor | None = None) -> Iterator[None]:
        """Computes with these adapters inside the block; gradients reach their parameters.

        Args:
            adapters: one, or several with `rows_B`; None stands for the base model.
            rows_B: for each batch row the index of its adapter, int64; for a packed row [1, N], that of each token.
                Layers that see tokens without their rows (experts, and the output layer on gathered hidden states)
                cannot be shared between adapters this way: a pass over them raises InvalidInput, except through
                `logprobs`, which takes rows for tokens. Best on the CPU: it is looked at before anything runs.

        Raises:
            InvalidInput: inside the block, as said above.
        """
        if rows_B is None and len(adapters) != 1:
            raise ValueError(f"{len(adapters)} adapters without rows_B; it is needed unless there is exactly one")
        if rows_B is not None and rows_B.numel() and not 0 <= int(rows_B.min()) <= int(rows_B.max()) < len(adapters):
            raise ValueError(f"rows_B points outside the {len(adapters)} adapters")
        source = _TrainedAdapters(tuple(adapters), rows_B, self.switch)
        with self.switch.using(source, training=self.switch.training):
            yield

    @contextmanager
    def training(self, on: bool = True) -> Iterator[None]:
        """Dropout, by each adapter's own probability, applies inside this block only.

        It draws from torch's global generator of the device. Adapters with dropout cannot share a batch: what one of
        them draws would depend on the others.
        """
        with self.switch.using(self.switch.source, training=on):
            yield


@dataclass(frozen=True, slots=True)
class _TrainedAdapters:
    """Adapters with gradients: one for all rows, or stacked with an index per row."""

    adapters: tuple[Adapter | None, ...]
    rows: Tensor | None
    switch: Switch

    def apply(self, linear: LoraLinear, x: Tensor) -> Tensor:
        layer = linear.layer
        if self.rows is None:
            return self._apply_one(self.adapters[0], linear, x)
        out = frozen_linear(x, linear.weight, linear.bias)
        if not self.is_mixed(layer):
            return out
        if self.switch.training and any(a is not None and a.spec.dropout > 0 for a in self.adapters):
            raise InvalidInput("adapters with dropout cannot share a batch", field="lora.dropout")
        if x.dim() == 3 and x.shape[:2] == (1, self.rows.numel()):
            return self._add_tokens(linear, x[0], out[0])[None]
        check_rows(self.rows, x)
        return self._add_tokens(linear, x, out) if x.dim() == 2 else self._add_stacked(linear, x, out)

    def with_rows(self, rows: Tensor) -> _TrainedAdapters:
        return self if self.rows is None else replace(self, rows=rows)

    def is_mixed(self, layer: int) -> bool:
        return self.rows is not None and any(a is not None and layer in a.weights for a in self.adapters)

    def _apply_one(self, adapter: Adapter | None, linear: LoraLinear, x: Tensor) -> Tensor:
        weights = adapter.weights.get(linear.layer) if adapter is not None else None
        if adapter is None or weights is None:
            return frozen_linear(x, linear.weight, linear.bias)
        if self.switch.training and adapter.spec.dropout > 0:
            return self._apply_with_dropout(adapter, weights, linear, x)
        a_rI, b_Or = weights.a.to(x.dtype), weights.b.to(x.dtype)
        out = adapted_linear(x, linear.weight, linear.bias, a_rI, b_Or, scaling=adapter.spec.scaling)
        return out if weights.m is None else stretched(out, linear.bias, adapter.stretch_of(linear.layer))

    def _apply_with_dropout(self, adapter: Adapter, weights: LayerWeights, linear: LoraLinear, x: Tensor) -> Tensor:
        """Of the update's input alone; by how much DoRA changes the base's own output is part of the update (PEFT)."""
        dropped = functional.dropout(x, adapter.spec.dropout)
        out = self._add_one(adapter, weights, dropped, frozen_linear(x, linear.weight, linear.bias))
        if weights.m is None:
            return out
        a_rI, b_Or = weights.a.to(x.dtype), weights.b.to(x.dtype)
        own = adapted_linear(dropped, linear.weight, None, a_rI, b_Or, scaling=adapter.spec.scaling)
        return out + own * adapter.stretch_of(linear.layer).to(x.dtype)

    def _add_one(self, adapter: Adapter, weights: LayerWeights, x: Tensor, out: Tensor) -> Tensor:
        a_rI, b_Or = weights.a.to(x.dtype), weights.b.to(x.dtype)
        h_Nr = functional.linear(x, a_rI).flatten(0, -2)
        # One product that adds into the result, rather than a product, a scaling and a sum.
        return torch.addmm(out.flatten(0, -2), h_Nr, b_Or.T, alpha=adapter.spec.scaling).view_as(out)

    def _add_stacked(self, linear: LoraLinear, x: Tensor, out: Tensor) -> Tensor:
        """Rows of any lengths in one batched product: [B, T, I] with A[n, r, I] and B[n, O, r] taken by row."""
        assert self.rows is not None
        a_nrI, b_nOr = self._stack(linear.layer, x)
        rows_B = self.rows.to(x.device)
        x_BTI = x.reshape(x.shape[0], -1, x.shape[-1])
        h_BTr = torch.bmm(x_BTI, a_nrI[rows_B].mT)
        out_BTO = torch.baddbmm(out.reshape(*x_BTI.shape[:2], -1), h_BTr, b_nOr[rows_B].mT)
        stretch_nO = self._stack_stretches(linear)
        if stretch_nO is not None:
            out_BTO = stretched(out_BTO, linear.bias, stretch_nO[rows_B][:, None])
        return out_BTO.view_as(out)

    def _add_tokens(self, linear: LoraLinear, x_NI: Tensor, out_NO: Tensor) -> Tensor:
        """Adapter by adapter: taking the output layer's B by token would need a vocabulary for each."""
        assert self.rows is not None
        layer = linear.layer
        for index, adapter in enumerate(self.adapters):
            places = (self.rows == index).nonzero()[:, 0].to(x_NI.device)
            if adapter is not None and layer in adapter.weights and len(places):
                part = self._add_one(adapter, adapter.weights[layer], x_NI[places], out_NO[places])
                if adapter.spec.use_dora:
                    part = stretched(part, linear.bias, adapter.stretch_of(layer))
                out_NO = out_NO.index_copy(0, places, part)
        return out_NO

    def _stack_stretches(self, linear: LoraLinear) -> Tensor | None:
        """[n, O], 0 for adapters without DoRA and the base; None where no adapter has it."""
        having = [a is not None and a.spec.use_dora and linear.layer in a.weights for a in self.adapters]
        if not any(having):
            return None
        nothing_O = torch.zeros(linear.out_features, device=linear.weight.device)
        return torch.stack(
            [
                a.stretch_of(linear.layer) if a and has else nothing_O
                for a, has in zip(self.adapters, having, strict=True)
            ]
        )

    def _stack(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """A[n, r, I] and scaled B[n, O, r] in the dtype of x; smaller ranks and the base filled with zeros."""
        found = [None if a is None or layer not in a.weights else a for a in self.adapters]
        rank = max(a.spec.rank for a in found if a is not None)
        num_out = next(a.weights[layer].b.shape[0] for a in found if a is not None)
        all_a, all_b = [], []
        for adapter in found:
            if adapter is None:
                all_a.append(x.new_zeros(rank, x.shape[-1]))
                all_b.append(x.new_zeros(num_out, rank))
                continue
            missing, weights = rank - adapter.spec.rank, adapter.weights[layer]
            all_a.append(functional.pad(weights.a.to(x.dtype), (0, 0, 0, missing)))
            all_b.append(functional.pad(weights.b.to(x.dtype) * adapter.spec.scaling, (0, missing)))
        return torch.stack(all_a), torch.stack(all_b)


def check_rows(rows: Tensor, x: Tensor) -> None:
    """Refuses an input whose first dimension is not that of the rows.

    Raises:
        InvalidInput: a layer that sees tokens without the rows they belong to.
    """
    if x.dim() < 2 or x.shape[0] != rows.numel():
        raise _rows_unknown(x)


def _rows_unknown(x: Tensor) -> InvalidInput:
    return InvalidInput(
        f"a layer that gets {list(x.shape)} without knowing whose is what cannot serve several adapters at once",
        field="lora.target_modules",
        hint="run adapters on experts one at a time",
    )
