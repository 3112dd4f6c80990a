"""A run: one adapter being trained, with its gradients, optimizer, random stream and history.

Only the torch thread changes a run; the event loop reads its counters. Nothing of one run is visible to
another.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput
from farstep_proto.names import check_name, check_run_id
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.optim import Optimizer
from farstep_worker.submission import Limits


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What a run was created with. The spec of its adapter may change later, by `reset`."""

    run_id: str
    lora: LoraSpec
    seed: int
    max_seq_len: int
    project: str = ""  # empty: the operators'

    def limits(self, vocab_size: int) -> Limits:
        """What the run's passes may ask of a model with that vocabulary."""
        return Limits(vocab_size, self.max_seq_len, self.lora.value_head)


@dataclass(frozen=True, slots=True)
class RandomStream:
    """Numbers that depend on the seed and on how many were drawn, so that two integers restore them."""

    seed: int
    draws: int = 0

    def current(self) -> int:
        """A seed for torch, of 63 bits."""
        digest = hashlib.sha256(f"{self.seed}/{self.draws}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def advanced(self) -> RandomStream:
        return dataclasses.replace(self, draws=self.draws + 1)


@dataclass(slots=True, eq=False)
class Run:
    """`step` counts optimizer steps since the adapter was fresh or loaded without its optimizer.

    `gradients` are aligned with the adapter's parameters; None for one that no pass since the last step has reached.

    `start_adapter` are the weights that the run began with; None: a fresh adapter, which computes what the base model
    does. A run begins when it is created or reset, and with weights that are loaded without their optimizer before the
    first step (`is_at_start`); loaded with their optimizer, weights bring the beginning of their own run along.

    `away` are the shapes of its tensors while it is out of memory; everything else of it stays.

    `seq` is of the operation that was begun last. `incarnation` tells the run from any other that ever had its id, for
    what is made once an operation; empty where nobody writes operations down. `lost` says why a run that was written
    down could not be brought back: its operations fail.
    """

    config: RunConfig
    adapter: Adapter
    optimizer: Optimizer
    random: RandomStream
    gradients: list[Tensor | None] | None = None
    step: int = 0
    policy_version: int = 0
    start_adapter: Adapter | None = None
    is_at_start: bool = True
    away: Mapping[str, torch.Size] | None = None
    seq: int = 0
    incarnation: str = ""
    lost: str = ""

    @property
    def operation(self) -> str:
        """Names the operation that was begun last, in every place and for ever; empty where nobody writes them down."""
        return f"{self.incarnation}:{self.seq}" if self.incarnation else ""

    @classmethod
    def start(cls, layers: LoraLayers, config: RunConfig) -> Run:
        adapter = Adapter.init(layers, config.lora, seed=config.seed)
        return cls(config, adapter, fresh_optimizer(adapter), RandomStream(config.seed))

    def reset(self, lora_rank: int) -> None:
        """A fresh adapter of another rank (same layers, same alpha / rank), a fresh value head and an empty optimizer.

        Its first weights come from the run's random stream; the policy version stays.
        """
        old = self.adapter.spec
        spec = dataclasses.replace(old, rank=lora_rank, alpha=float(old.alpha or old.rank) / old.rank * lora_rank)
        adapter = Adapter.init(self.adapter.layers, spec, seed=self.random.current())
        self.optimizer = fresh_optimizer(adapter)
        self.adapter = adapter
        self.random = self.random.advanced()
        self.gradients = None
        self.step = 0
        self.start_adapter = None
        self.is_at_start = True

    def tensors(self) -> dict[str, Tensor]:
        """All that takes room, by a name that stays the same; empty tensors while it is away."""
        start = self.start_adapter.parameters() if self.start_adapter is not None else []
        groups: dict[str, Sequence[Tensor]] = {
            "adapter": self.adapter.parameters(),
            "start": start,
            "gradients": [gradient for gradient in self.gradients or [] if gradient is not None],
            "moments": self.optimizer.moments(),
        }
        return {f"{group}.{i}": tensor for group, tensors in groups.items() for i, tensor in enumerate(tensors)}

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def go_away(self) -> dict[str, Tensor]:
        """Leaves memory: gives its tensors, and keeps only their shapes."""
        given = {}
        for name, tensor in self.tensors().items():
            given[name] = tensor.detach()
            tensor.data = tensor.new_empty(0)
        self.away = {name: tensor.shape for name, tensor in given.items()}
        return given

    def come_back(self, given: Mapping[str, Tensor]) -> None:
        """Takes tensors over that `go_away` gave, or equal ones."""
        tensors = self.tensors()
        back = {name: given[name].to(tensor.device) for name, tensor in tensors.items()}  # there may be no room for all
        for name, tensor in tensors.items():
            tensor.data = back[name]
        self.away = None

    def weights_of(self, choice: str) -> Adapter | None:
        """The weights that `farstep_proto.validation.ADAPTERS` names; None: the base model's alone."""
        return {"current": self.adapter, "start": self.start_adapter, "base": None}[choice]

    def add_gradients(self, gradients: list[Tensor | None]) -> None:
        if self.gradients is None:
            self.gradients = gradients
            return
        for index, (total, gradient) in enumerate(zip(self.gradients, gradients, strict=True)):
            if total is None:
                self.gradients[index] = gradient
            elif gradient is not None:
                total.add_(gradient)

    def to_proto(self, *, vocab_size: int, next_seq: int) -> pb.Run:
        return pb.Run(
            run_id=self.config.run_id,
            base_model=self.adapter.layers.base.name,
            lora=self.adapter.spec.to_proto(),
            seed=self.config.seed,
            max_seq_len=self.config.max_seq_len,
            vocab_size=vocab_size,
            policy_version=self.policy_version,
            step=self.step,
            next_seq=next_seq,
            project=self.config.project,
        )


def fresh_optimizer(adapter: Adapter) -> Optimizer:
    return Optimizer(adapter.names(), adapter.parameters())


def read_config(
    request: pb.CreateRunRequest, *, base_model: str, max_seq_len: int, default_run_id: str, default_seed: int
) -> RunConfig:
    """The checked configuration that a request asks for.

    Raises:
        InvalidInput: naming the field.
    """
    if request.base_model != base_model:
        raise InvalidInput(
            f"this trainer serves {base_model!r}, not {request.base_model!r}",
            field="base_model",
            hint="start a trainer with that model, or ask for the one that is served",
        )
    if not 0 <= request.max_seq_len <= max_seq_len:
        raise InvalidInput(
            f"{request.max_seq_len} is not between 1 and the model's {max_seq_len} (0 means that)", field="max_seq_len"
        )
    seed = request.seed if request.HasField("seed") else default_seed
    if seed < 0:
        raise InvalidInput(f"{seed} is negative", field="seed")
    return RunConfig(
        run_id=check_run_id(request.run_id or default_run_id),
        lora=LoraSpec.from_proto(request.lora),
        seed=seed,
        max_seq_len=request.max_seq_len or max_seq_len,
        project=check_name(request.project, field="project") if request.project else "",
    )
