"""Adapters of a sampler: a fixed number of places, several of them at work in one batch, without gradients.

Weights lie stacked, A[n, r, I] and B[n, r, O], and with DoRA by how much each row is made longer, [n, O], in the dtype
of the base; place 0 is the base model and stays empty.
Loading or freeing one place never touches another, so that sequences on other versions go on.

A mixed batch goes through two products over the adapters side by side, with every row's foreign ones zeroed between
them; that is why adapters with infinities are refused at loading: zero times infinity would reach other rows.

Shapes: B batch rows, N tokens, I inputs of a layer, O outputs, r rank, n slots, p slots present in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from farstep_model.adapter import Adapter
from farstep_model.dora import stretched
from farstep_model.lora import LoraLayers, LoraLinear, check_rows
from farstep_proto.errors import InvalidInput


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """All slots' weights of one layer: `a` [n, r, I] and `b` [n, r, O]."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class _Occupant:
    """What is remembered of a loaded adapter; its weights are in the stacks."""

    slot: int
    rank: int
    scaling: float
    layers: frozenset[int]
    use_dora: bool


class AdapterSlots:
    """`num_slots` places for adapters of rank up to `max_rank`, place 0 (the base) among them."""

    def __init__(self, layers: LoraLayers, num_slots: int, max_rank: int) -> None:
        if num_slots < 2 or max_rank < 1:
            raise ValueError(f"num_slots {num_slots} must be at least 2 and max_rank {max_rank} at least 1")
        self.num_slots = num_slots
        self.max_rank = max_rank
        self._layers = layers
        # A layer's stack appears with the first adapter that has it: most never adapt the output layer.
        self._stacks: dict[int, _Stack] = {}
        self._stretches: dict[int, Tensor] = {}
        self._occupants: dict[int, _Occupant] = {}
        self._scaling_n = torch.zeros(num_slots, device=layers.base.device, dtype=layers.base.dtype)

    @torch.no_grad()
    def load(self, slot: int, adapter: Adapter) -> None:
        """Copies an adapter into a slot, in the place of what was there.

        Raises:
            InvalidInput: its rank is above `max_rank`, or a weight is not finite.
        """
        self._check_slot(slot)
        if adapter.spec.rank > self.max_rank:
            raise InvalidInput(f"{adapter.spec.rank} is above this sampler's {self.max_rank}", field="lora.rank")
        for name, parameter in zip(adapter.names(), adapter.parameters(), strict=True):
            if not torch.isfinite(parameter).all():
                raise InvalidInput("it has weights that are not finite", field=name)
        self.free(slot)
        rank = adapter.spec.rank
        for layer, weights in adapter.weights.items():
            stack = self._stacks.get(layer) or self._new_stack(layer)
            stack.a[slot, :rank] = weights.a
            stack.b[slot, :rank] = weights.b.T
            if adapter.spec.use_dora:
                self._stretch_of(layer)[slot] = adapter.stretch_of(layer)
        self._scaling_n[slot] = adapter.spec.scaling
        layers, use_dora = frozenset(adapter.weights), adapter.spec.use_dora
        self._occupants[slot] = _Occupant(slot, rank, adapter.spec.scaling, layers, use_dora)

    @torch.no_grad()
    def free(self, slot: int) -> None:
        """Empties a slot: it is the base again."""
        self._check_slot(slot)
        if self._occupants.pop(slot, None) is None:
            return
        # B may keep what it had: it is multiplied by A's zeros, up to where the next adapter writes both.
        for stack in self._stacks.values():
            stack.a[slot] = 0
        for stretch_nO in self._stretches.values():
            stretch_nO[slot] = 0

    @contextmanager
    def active(self, rows_B: Tensor | Sequence[int]) -> Iterator[None]:
        """Computes each batch row with the slot that `rows_B` names, without gradients.

        Best given on the CPU: it is looked at before anything runs. When all rows name one slot, the shape of what
        passes through a layer does not matter; otherwise its first dimension must be that of `rows_B`.

        Raises:
            InvalidInput: inside the block, where a layer sees tokens without their rows (experts).
        """
        source = self._source(torch.as_tensor(rows_B, dtype=torch.long))
        with self._layers.switch.using(source if source.stacks else None, training=False), torch.no_grad():
            yield

    def _source(self, rows_B: Tensor) -> _SlotRows:
        rows_B = rows_B.cpu()
        distinct = sorted(set(rows_B.tolist()))
        if distinct and not 0 <= distinct[0] <= distinct[-1] < self.num_slots:
            raise ValueError(f"rows_B points outside the {self.num_slots} slots")
        present_p = torch.tensor([slot for slot in distinct if slot in self._occupants], dtype=torch.long)
        own_Bp = rows_B[:, None] == present_p
        present = [self._occupants[slot] for slot in present_p.tolist()]
        adapted = frozenset[int]().union(*(occupant.layers for occupant in present))
        with_dora = frozenset[int]().union(*(occupant.layers for occupant in present if occupant.use_dora))
        device = self._layers.base.device
        return _SlotRows(
            remake=self._source,
            stacks={layer: stack for layer, stack in self._stacks.items() if layer in adapted},
            stretches={layer: self._stretches[layer] for layer in with_dora},
            rows=rows_B,
            single=self._occupants.get(distinct[0]) if len(distinct) == 1 else None,
            present=present_p.to(device),
            own=own_Bp.to(device),
            scaling=self._scaling_n[present_p.to(device)],
        )

    def _check_slot(self, slot: int) -> None:
        if not 0 < slot < self.num_slots:
            raise ValueError(f"slot {slot} is not between 1 and {self.num_slots - 1}")

    def _stretch_of(self, layer: int) -> Tensor:
        """[n, O], made with the first adapter that needs it."""
        if layer not in self._stretches:
            base, num_outputs = self._layers.base, self._layers.linears[layer].out_features
            self._stretches[layer] = torch.zeros(self.num_slots, num_outputs, device=base.device, dtype=base.dtype)
        return self._stretches[layer]

    def _new_stack(self, layer: int) -> _Stack:
        linear, base = self._layers.linears[layer], self._layers.base
        stack = _Stack(
            torch.zeros(self.num_slots, self.max_rank, linear.in_features, device=base.device, dtype=base.dtype),
            torch.zeros(self.num_slots, self.max_rank, linear.out_features, device=base.device, dtype=base.dtype),
        )
        self._stacks[layer] = stack
        return stack


@dataclass(frozen=True, slots=True, eq=False)
class _SlotRows:
    """The slots of one batch: `present` [p] are those with an adapter, `own` [B, p] says which is whose.

    `stacks` has the layers that any of them adapts, `stretches` [n, O] those that any of them adapts with DoRA.
    """

    stacks: Mapping[int, _Stack]
    stretches: Mapping[int, Tensor]
    rows: Tensor
    single: _Occupant | None
    present: Tensor
    own: Tensor
    scaling: Tensor
    remake: Callable[[Tensor], _SlotRows]

    def with_rows(self, rows: Tensor) -> _SlotRows:
        return self.remake(rows)

    def is_mixed(self, layer: int) -> bool:
        return self.single is None and layer in self.stacks

    def apply(self, linear: LoraLinear, x: Tensor) -> Tensor:
        out = linear.base_output(x)
        stack = self.stacks.get(linear.layer)
        if stack is None:
            return out
        if self.single is not None:
            out = self._add_one(self.single, stack, x, out)
            stretch_nO = self.stretches.get(linear.layer)
            return out if stretch_nO is None else stretched(out, linear.bias, stretch_nO[self.single.slot])
        check_rows(self.rows, x)
        a_pI, b_pO = stack.a[self.present].flatten(0, 1), stack.b[self.present].flatten(0, 1)
        h = functional.linear(x, a_pI).unflatten(-1, (len(self.present), -1))
        own = self.own.view(x.shape[0], *[1] * (x.dim() - 2), -1, 1)
        h = torch.where(own, h * self.scaling[:, None], 0)
        out = out.flatten(0, -2).addmm_(h.flatten(-2).flatten(0, -2), b_pO).view_as(out)
        stretch_nO = self.stretches.get(linear.layer)
        if stretch_nO is None:
            return out
        by_row = stretch_nO[self.rows.to(x.device)]
        return stretched(out, linear.bias, by_row.view(x.shape[0], *[1] * (x.dim() - 2), -1))

    def _add_one(self, occupant: _Occupant, stack: _Stack, x: Tensor, out: Tensor) -> Tensor:
        slot, rank = occupant.slot, occupant.rank
        h_Nr = functional.linear(x, stack.a[slot, :rank]).flatten(0, -2)
        return out.flatten(0, -2).addmm_(h_Nr, stack.b[slot, :rank], alpha=occupant.scaling).view_as(out)
