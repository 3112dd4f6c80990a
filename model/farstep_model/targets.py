"""Which layers of a model an adapter may sit on, and which of them a spec means.

Decided on module paths alone, so that no list of architectures is needed: a linear layer inside a numbered block is
attention when its path says so, and feed-forward otherwise; the output layer is the unembedding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput

Kind = Literal["attn", "mlp", "router", "unembed"]

_NUMBERED_BLOCK = re.compile(r"(?:^|\.)\d+\.(?P<inside>.+)")
_TOKEN_MIXING = re.compile(r"att(?:n|ention)|mixer")
_ROUTER = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate)(?:\.|$)")


@dataclass(frozen=True, slots=True)
class Target:
    """A linear layer that can be adapted: its module path in the model, and what it is."""

    name: str
    kind: Kind

    @property
    def is_routed(self) -> bool:
        """Whether the layer gets a choice of tokens rather than all of them in their rows."""
        return ".experts." in self.name


def find_targets(model: PreTrainedModel) -> tuple[Target, ...]:
    """Every plain `nn.Linear` in the decoder's blocks and the output layer, in the model's own order.

    Subclasses of `nn.Linear` compute something else and are left alone.
    """
    output_layer, decoder = model.get_output_embeddings(), model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    targets = []
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        if module is output_layer:
            targets.append(Target(name, "unembed"))
        elif id(module) in inside and (match := _NUMBERED_BLOCK.search(name)):
            targets.append(Target(name, _kind(match["inside"])))
    return tuple(targets)


def select_targets(targets: Sequence[Target], spec: LoraSpec, *, fused: Sequence[str]) -> tuple[int, ...]:
    """Indices into `targets` of the layers that the spec means, ascending.

    Args:
        fused: names of three-dimensional expert parameters, which cannot be adapted. The switches pass over them.

    Raises:
        InvalidInput: a target module that is not there or is fused, or switches that meet no layer.
    """
    if spec.target_modules:
        chosen = {index for wanted in spec.target_modules for index in _named(targets, wanted, fused)}
        return tuple(sorted(chosen))
    kinds = {"attn": spec.train_attn, "mlp": spec.train_mlp, "unembed": spec.train_unembed, "router": False}
    indices = tuple(index for index, target in enumerate(targets) if kinds[target.kind])
    if not indices:
        raise InvalidInput("this model has no layer of the kinds to train", field="lora", hint=_known(targets))
    return indices


def shortest_names(targets: Sequence[Target], indices: Sequence[int]) -> tuple[str, ...]:
    """Module names that mean exactly these layers by suffix: last parts where they suffice, else whole paths."""
    chosen = {targets[index].name for index in indices}
    leaves = {_leaf(name) for name in chosen}
    if {target.name for target in targets if _leaf(target.name) in leaves} == chosen:
        return tuple(sorted(leaves))
    return tuple(sorted(chosen))


def find_fused_experts(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of parameters that hold all experts of a block in one three-dimensional tensor."""
    return tuple(name for name, parameter in model.named_parameters() if parameter.dim() == 3 and "expert" in name)


def _kind(path_in_block: str) -> Kind:
    if _TOKEN_MIXING.search(path_in_block):
        return "attn"
    return "router" if _ROUTER.search(path_in_block) else "mlp"


def _named(targets: Sequence[Target], wanted: str, fused: Sequence[str]) -> list[int]:
    found = [index for index, target in enumerate(targets) if _matches(target.name, wanted)]
    if found:
        return found
    if any(_matches(name, wanted) for name in fused):
        raise InvalidInput(
            f"{wanted!r} holds fused experts in one three-dimensional tensor, which cannot be adapted",
            field="lora.target_modules",
            hint=_known(targets),
        )
    raise InvalidInput(f"this model has no linear layer {wanted!r}", field="lora.target_modules", hint=_known(targets))


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _known(targets: Sequence[Target]) -> str:
    return f"there are {', '.join(sorted({_leaf(target.name) for target in targets}))}"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
