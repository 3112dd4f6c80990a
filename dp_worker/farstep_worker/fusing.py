"""Small passes of several runs in one: which ones, whether that gives the same bits, and the computation.

A run's numbers must be those that it would have alone, to the bit, since operations may be computed again after a
crash, in other company. Everything that is a run's own is computed as alone (`farstep_model.blocks`); only the trunk's
common products, norms and attention see all rows. Whether these are then the same to the bit depends on library,
processor, threads and shape, and on no value: so the first group of each shape is computed both ways, and a shape that
fails the comparison is never fused.

Invariant: what comes out of here is what `run_pass` gives for each pass, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.blocks import active_blocks
from farstep_model.lora import LoraLayers
from farstep_model.losses import LossResult
from farstep_proto.errors import ModelError
from farstep_worker.gradients import Part, PassResult, Total, loss_of
from farstep_worker.micro_batch import MicroBatch, plan
from farstep_worker.phases import Phases
from farstep_worker.subject import Subject
from farstep_worker.submission import Call, Pass

# Measured on two cores without a GPU, time of the passes one by one over that of one fused pass, embedded model (and
# random-100m). 4 runs: 8 tokens each 1.1 (2.0), 32 2.3 (1.9), 64 1.6 (1.7), 256 1.2, 512 1.05. 16 runs: 8 tokens 3.6,
# 32 2.4, 64 2.0, 256 1.3, 512 1.0. What a pass costs beyond its products is shared out; above this size it is little.
MAX_TOKENS = 256  # of one pass, padding included
MAX_RUNS = 16
_MAX_SHAPES = 4096
_FREE_TRIALS = 32
_USES_A_TRIAL = 4  # a shape is tried when earlier ones have been of use so often: trials cost twice the time

Shape = tuple[object, ...]
Member = tuple[Adapter, Pass]


@dataclass(slots=True)
class Fusing:
    """What has been found out about shapes on this machine. Args: `layers` of the model on which all passes run."""

    layers: LoraLayers
    is_on: bool
    _verdicts: dict[Shape, bool] = field(default_factory=dict)
    _num_uses: int = 0

    @classmethod
    def of(cls, layers: LoraLayers, *, is_on: bool) -> Fusing:
        """On a CPU, and where no layer mixes the tokens of a batch (experts); elsewhere it stays off."""
        has_experts = any(target.is_routed for target in layers.targets)
        return cls(layers, is_on and layers.base.device.type == "cpu" and not has_experts)

    @property
    def most(self) -> int:
        """How many passes may share a batch."""
        return MAX_RUNS if self.is_on else 1

    def fits(self, call: Call) -> bool:
        """Whether a call is small enough to share a batch, all else of its run permitting."""
        return (
            self.is_on
            and isinstance(call, Pass)
            and call.adapter == "current"
            and call.custom is None
            and num_padded_tokens(call) <= MAX_TOKENS
        )

    def joins(self, call: Call, first: Call) -> bool:
        """Whether two calls can share a batch: both are small, and of one width and direction."""
        return (
            self.fits(call)
            and self.fits(first)
            and isinstance(call, Pass)
            and isinstance(first, Pass)
            and call.backward == first.backward
            and _width(call) == _width(first)
        )

    def pays(self, members: Sequence[Member]) -> bool | None:
        """Whether to fuse what can share: False no, True yes, None: once both ways, to know it for the next time."""
        if len(members) < 2:
            return False
        verdict = self._verdicts.get(_shape(members))
        if verdict is not None:
            self._num_uses += verdict
            return verdict
        may_try = len(self._verdicts) < min(_MAX_SHAPES, _FREE_TRIALS + self._num_uses // _USES_A_TRIAL)
        return None if may_try else False

    def learn(self, members: Sequence[Member], fused: Sequence[object], alone: Sequence[object]) -> None:
        """Takes in what came of computing a group both ways."""
        self._verdicts[_shape(members)] = all(is_same(a, b) for a, b in zip(fused, alone, strict=True))


def run_together(
    layers: LoraLayers, members: Sequence[Member], *, token_budget: int, phases: Phases
) -> list[PassResult | ModelError]:
    """Each pass's result as `run_pass` gives it, or the error that it raises: one failure is nobody else's."""
    backward = members[0][1].backward
    adapters = [adapter for adapter, _ in members]
    with phases.measure("forward"), torch.enable_grad() if backward else torch.no_grad():
        batches = [
            MicroBatch.of(call.examples, _micro_batches(call, token_budget)[0], device=layers.base.device)
            for _, call in members
        ]
        with active_blocks(layers, adapters, [batch.token_ids.numel() for batch in batches]):
            hidden_BTD = layers.base.hidden_states(torch.cat([batch.token_ids for batch in batches]))
        parts = hidden_BTD.split([len(batch.token_ids) for batch in batches])
        subjects = [Subject(adapter, call.spec) for adapter, call in members]
        calls = [call for _, call in members]
        losses = [_loss(*each) for each in zip(subjects, calls, batches, parts, strict=True)]
    with phases.measure("backward" if backward else "forward"):
        gradients = _gradients(subjects, [loss for loss, _ in losses]) if backward else [None] * len(members)
        return [
            _result(subject, call, Part.of(batch, outputs, loss, own))
            for subject, call, batch, (loss, outputs), own in zip(
                subjects, calls, batches, losses, gradients, strict=True
            )
        ]


def _loss(subject: Subject, call: Pass, batch: MicroBatch, hidden_BTD: Tensor) -> tuple[LossResult, Tensor]:
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch.positions)
    with subject.adapter.layers.active([subject.adapter]):
        return loss_of(subject, call, batch, hidden_ND)


def _gradients(subjects: Sequence[Subject], losses: Sequence[LossResult]) -> list[tuple[Tensor, ...] | None]:
    """Of each loss by its own parameters; None where no token counts. What is not finite spoils no other."""
    going = [index for index, loss in enumerate(losses) if loss.num_active]
    gradients: list[tuple[Tensor, ...] | None] = [None] * len(losses)
    if not going:
        return gradients
    parameters = [subjects[index].parameters() for index in going]
    flat = torch.autograd.grad(
        [losses[index].loss_sum for index in going], [one for own in parameters for one in own], materialize_grads=True
    )
    ends = list(accumulate((len(own) for own in parameters), initial=0))
    for index, (start, end) in zip(going, pairwise(ends), strict=True):
        gradients[index] = flat[start:end]
    return gradients


def _result(subject: Subject, call: Pass, part: Part) -> PassResult | ModelError:
    """As a pass of a single micro-batch ends."""
    total = Total([torch.zeros_like(parameter) for parameter in subject.parameters()] if call.backward else None)
    total.add(part)
    try:
        return total.result(subject, call)
    except ModelError as error:
        return error


def num_padded_tokens(call: Pass) -> int:
    return _width(call) * len(call.examples)


def is_same(one: object, other: object) -> bool:
    """To the bit."""
    if not isinstance(one, PassResult) or not isinstance(other, PassResult):
        return repr(one) == repr(other)
    mine, theirs = one.gradients, other.gradients
    return (
        (one.loss_sum, one.num_active, one.metrics) == (other.loss_sum, other.num_active, other.metrics)
        and all(a.tobytes() == b.tobytes() for a, b in zip(one.outputs, other.outputs, strict=True))
        and (mine is None) == (theirs is None)
        and all(_bits_equal(a, b) for a, b in zip(mine or [], theirs or [], strict=True))
    )


def _bits_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def can_share(adapter: Adapter, call: Pass, *, token_budget: int) -> bool:
    """A plain adapter and nothing beside it, no dropout, and a pass that is one micro-batch alone."""
    is_plain = not (adapter.spec.use_dora or adapter.spec.value_head)
    draws = call.backward and adapter.spec.dropout > 0
    return is_plain and not draws and len(_micro_batches(call, token_budget)) == 1


def _micro_batches(call: Pass, token_budget: int) -> list[list[int]]:
    return plan(call.examples, token_budget, num_together=call.spec.num_data)


def _shape(members: Sequence[Member]) -> Shape:
    """All that the common products can depend on but values."""
    first = members[0][1]
    return (
        torch.get_num_threads(),
        first.backward,
        _width(first),
        *(_form(adapter, call) for adapter, call in members),
    )


def _form(adapter: Adapter, call: Pass) -> tuple[int, int, tuple[int, ...]]:
    return len(call.examples), adapter.spec.rank, tuple(adapter.weights)


def in_order(members: Sequence[tuple[str, Adapter, Pass]]) -> list[tuple[str, Pass]]:
    """Run ids and passes, those of one form side by side: the fewer shapes, the sooner all are known."""
    return [(run_id, call) for run_id, adapter, call in sorted(members, key=lambda member: _form(*member[1:]))]


def _width(call: Pass) -> int:
    return max(len(example.tokens) for example in call.examples)
