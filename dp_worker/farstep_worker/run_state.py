"""A run as numbers and tensors, apart from the objects that it is made of: what a snapshot has, and what ranks send.

Invariant: a run that `rebuilt` makes of what `of` and `Run.tensors` gave goes on as the first would have, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_model.value_head import ValueHead
from farstep_proto.errors import InvalidInput
from farstep_worker.runs import RandomStream, Run, RunConfig, fresh_optimizer


@dataclass(frozen=True, slots=True)
class AdapterForm:
    """What an adapter's tensors are those of."""

    spec: LoraSpec
    has_value_head: bool

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterForm:
        return cls(adapter.spec, adapter.value_head is not None)

    def fresh(self, layers: LoraLayers) -> Adapter:
        adapter = Adapter.init(layers, self.spec, seed=0)
        if self.has_value_head != (adapter.value_head is not None):
            adapter.value_head = ValueHead.fresh(layers.base) if self.has_value_head else None
        return adapter


@dataclass(frozen=True, slots=True)
class RunState:
    """`moment_steps` and `has_gradient` are aligned with the adapter's parameters.

    Args:
        start: None where the run began with a fresh adapter.
        moment_steps: of each parameter, how often it was updated; None: never.
        has_gradient: which parameters have one; None: no pass since the last step.
    """

    seq: int
    adapter: AdapterForm
    start: AdapterForm | None
    random: RandomStream
    step: int
    policy_version: int
    is_at_start: bool
    moment_steps: tuple[float | None, ...]
    has_gradient: tuple[bool, ...] | None

    @classmethod
    def of(cls, run: Run) -> RunState:
        """Also of a run that is out of memory."""
        gradients = run.gradients
        return cls(
            seq=run.seq,
            adapter=AdapterForm.of(run.adapter),
            start=None if run.start_adapter is None else AdapterForm.of(run.start_adapter),
            random=run.random,
            step=run.step,
            policy_version=run.policy_version,
            is_at_start=run.is_at_start,
            moment_steps=tuple(run.optimizer.moment_steps()),
            has_gradient=None if gradients is None else tuple(gradient is not None for gradient in gradients),
        )

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RunState:
        """Raises InvalidInput where it is no such state."""
        try:
            content = json.loads(data)
            start, has_gradient = content["start"], content["has_gradient"]
            content |= {
                "adapter": _form(content["adapter"]),
                "start": None if start is None else _form(start),
                "random": RandomStream(**content["random"]),
                "moment_steps": tuple(content["moment_steps"]),
                "has_gradient": None if has_gradient is None else tuple(has_gradient),
            }
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"not the state of a run: {error}") from error

    def rebuilt(self, layers: LoraLayers, config: RunConfig, tensors: Mapping[str, Tensor] | None) -> Run:
        """The run; without tensors they are zeros, for others to be copied into.

        Raises:
            InvalidInput: the tensors are of another run.
        """
        adapter = self.adapter.fresh(layers)
        parameters = adapter.parameters()
        optimizer = fresh_optimizer(adapter)
        optimizer.begin_moments(list(self.moment_steps))
        gradients: list[Tensor | None] | None = None
        if self.has_gradient is not None:
            pairs = zip(parameters, self.has_gradient, strict=True)
            gradients = [torch.zeros_like(parameter.detach()) if has else None for parameter, has in pairs]
        run = Run(
            config,
            adapter,
            optimizer,
            self.random,
            gradients,
            self.step,
            self.policy_version,
            None if self.start is None else self.start.fresh(layers),
            self.is_at_start,
            seq=self.seq,
        )
        if tensors is not None:
            _fill(run.tensors(), tensors)
        return run


@torch.no_grad()
def _fill(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    if own.keys() != given.keys() or any(own[name].shape != given[name].shape for name in own):
        raise InvalidInput("the tensors are of another run")
    for name, tensor in own.items():
        tensor.copy_(given[name])


def _form(content: Mapping[str, object]) -> AdapterForm:
    spec = content["spec"]
    assert isinstance(spec, dict)
    modules = tuple(spec["target_modules"])
    return AdapterForm(LoraSpec(**{**spec, "target_modules": modules}), bool(content["has_value_head"]))
