"""Which layers a spec means."""

from collections.abc import Callable

import pytest
from torch import nn

from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput

Load = Callable[[str], BaseModel]

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def chosen(layers: LoraLayers, **settings: object) -> list[str]:
    spec = LoraSpec(4, **{"train_attn": False, "train_mlp": False, **settings})
    return [layers.targets[layer].name for layer in layers.select(spec)]


def leaves(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train_attn": True}, ATTENTION),
        ({"train_mlp": True}, MLP),
        ({"train_unembed": True}, {"lm_head"}),
        ({"train_attn": True, "train_mlp": True, "train_unembed": True}, ATTENTION | MLP | {"lm_head"}),
        ({"target_modules": ("q_proj", "lm_head")}, {"q_proj", "lm_head"}),
    ],
)
def test_switches_and_names(load: Load, settings: dict[str, object], expected: set[str]) -> None:
    layers = LoraLayers.install(load("qwen3"))
    names = chosen(layers, **settings)
    assert leaves(names) == expected
    in_blocks = expected - {"lm_head"}
    assert len(names) == 2 * len(in_blocks) + ("lm_head" in expected)


def test_names_given_decide_alone(load: Load) -> None:
    layers = LoraLayers.install(load("llama"))
    spec = LoraSpec(4, target_modules=("layers.1.self_attn.q_proj",), train_attn=True, train_mlp=True)
    assert [layers.targets[layer].name for layer in layers.select(spec)] == ["model.layers.1.self_attn.q_proj"]


def test_a_suffix_is_of_whole_parts(load: Load) -> None:
    with pytest.raises(InvalidInput, match="no linear layer '_proj'"):
        chosen(LoraLayers.install(load("llama")), target_modules=("_proj",))


def test_an_unknown_name_lists_what_there_is(load: Load) -> None:
    with pytest.raises(InvalidInput, match="no linear layer 'qkv'") as caught:
        chosen(LoraLayers.install(load("llama")), target_modules=("q_proj", "qkv"))
    assert caught.value.field == "lora.target_modules"
    assert caught.value.hint == "there are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def test_fused_experts_are_passed_over_by_switches_and_refused_by_name(load: Load) -> None:
    layers = LoraLayers.install(load("moe"))
    assert leaves(chosen(layers, train_attn=True, train_mlp=True)) == ATTENTION
    with pytest.raises(InvalidInput, match="this model has no layer of the kinds to train"):
        chosen(layers, train_mlp=True)
    with pytest.raises(InvalidInput, match="fused experts") as caught:
        chosen(layers, target_modules=("experts.gate_up_proj",))
    assert caught.value.field == "lora.target_modules"


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(32, 32, bias=False)


def test_linear_experts_are_feed_forward_and_routers_are_not(load: Load) -> None:
    base = load("llama")
    mlp = base.model.model.layers[0].mlp
    mlp.experts = nn.ModuleList([Expert(), Expert()])
    mlp.gate = nn.Linear(32, 2, bias=False)
    layers = LoraLayers.install(base)
    names = chosen(layers, train_mlp=True)
    assert {name for name in names if "expert" in name} == {
        "model.layers.0.mlp.experts.0.w1",
        "model.layers.0.mlp.experts.1.w1",
    }
    assert "model.layers.0.mlp.gate" not in names
    assert chosen(layers, target_modules=("mlp.gate",)) == ["model.layers.0.mlp.gate"]


def test_shortest_names_mean_the_same_layers(load: Load) -> None:
    layers = LoraLayers.install(load("qwen3"))
    for settings in (
        {"train_attn": True, "train_unembed": True},
        {"target_modules": ("layers.0.mlp.up_proj", "q_proj")},
    ):
        spec = LoraSpec(4, **{"train_attn": False, "train_mlp": False, **settings})
        selected = layers.select(spec)
        names = layers.module_names(selected)
        assert layers.select(LoraSpec(4, target_modules=names)) == selected
    assert names == ("model.layers.0.mlp.up_proj", *(f"model.layers.{i}.self_attn.q_proj" for i in range(2)))
