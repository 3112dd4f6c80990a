"""The value head: what it gives, what of a run it touches, and its file."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_model.slots import AdapterSlots
from farstep_model.spec import LoraSpec
from farstep_model.value_head import ValueHead
from farstep_proto.errors import InvalidInput

Make = Callable[..., Adapter]


@pytest.fixture
def head(layers: LoraLayers) -> ValueHead:
    head = ValueHead.fresh(layers.base)
    with torch.no_grad():
        for parameter in head.named_parameters().values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return head


def test_it_is_a_linear_layer_in_fp32(head: ValueHead) -> None:
    plain = nn.Linear(32, 1)
    plain.load_state_dict({"weight": head.weight, "bias": head.bias})
    hidden_ND = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    values_N = head.values(hidden_ND)
    torch.testing.assert_close(values_N, plain(hidden_ND)[:, 0])
    assert head.values(hidden_ND.bfloat16()).dtype == torch.float32
    values_N.square().sum().backward()
    plain(hidden_ND).square().sum().backward()
    torch.testing.assert_close(head.weight.grad, plain.weight.grad)
    torch.testing.assert_close(head.bias.grad, plain.bias.grad)


def test_a_fresh_one_says_nothing_and_sends_nothing_into_the_model(layers: LoraLayers) -> None:
    hidden_ND = torch.randn(3, 32, requires_grad=True)
    values_N = ValueHead.fresh(layers.base).values(hidden_ND)
    assert values_N.tolist() == [0, 0, 0]
    values_N.sub(1).square().sum().backward()
    assert hidden_ND.grad is not None
    assert not hidden_ND.grad.any()


def test_its_file_has_the_names_of_trl(layers: LoraLayers, head: ValueHead) -> None:
    data = head.to_bytes()
    assert {name: tuple(tensor.shape) for name, tensor in load(data).items()} == {
        "v_head.summary.weight": (1, 32),
        "v_head.summary.bias": (1,),
    }
    back = ValueHead.from_bytes(layers.base, data, field="value_head.safetensors")
    assert torch.equal(back.weight, head.weight)
    assert torch.equal(back.bias, head.bias)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no safetensors at all",
        save({"v_head.summary.weight": torch.zeros(1, 32)}),
        save({"v_head.summary.weight": torch.zeros(1, 33), "v_head.summary.bias": torch.zeros(1)}),
    ],
)
def test_another_file_is_refused(layers: LoraLayers, data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        ValueHead.from_bytes(layers.base, data, field="value_head.safetensors")
    assert caught.value.field == "value_head.safetensors"


def test_an_adapter_is_the_same_with_it_or_without(layers: LoraLayers) -> None:
    plain, critic = (Adapter.init(layers, LoraSpec(4, value_head=has), seed=3) for has in (False, True))
    assert critic.names() == [*plain.names(), "v_head.summary.weight", "v_head.summary.bias"]
    assert len(critic.parameters()) == len(critic.names())
    assert critic.to_bytes() == plain.to_bytes()
    assert critic.files("x") == plain.files("x")


def test_what_each_output_depends_on(layers: LoraLayers) -> None:
    adapter = Adapter.init(layers, LoraSpec(4, target_modules=("lm_head", "v_proj"), value_head=True), seed=3)
    reached = {
        output: {
            name for name, is_reached in zip(adapter.names(), adapter.reached_by(output), strict=True) if is_reached
        }
        for output in ("logprobs", "values")
    }
    of_layers = {name for name in adapter.names() if "v_proj" in name}
    assert reached["values"] == of_layers | {"v_head.summary.weight", "v_head.summary.bias"}
    assert reached["logprobs"] == of_layers | {name for name in adapter.names() if "lm_head" in name}


def test_a_clone_has_its_own(layers: LoraLayers, make_adapter: Make) -> None:
    adapter = make_adapter(layers, value_head=True)
    clone = adapter.clone()
    with torch.no_grad():
        adapter.parameters()[-1].add_(1)
    assert clone.value_head is not None
    assert clone.value_head.bias.item() == 0


def test_samplers_never_get_it(layers: LoraLayers, make_adapter: Make, ids_BT: Tensor) -> None:
    adapter = make_adapter(layers, value_head=True)
    received = Adapter.from_bytes(layers, adapter.to_bytes())
    assert received.value_head is None
    slots = AdapterSlots(layers, 2, 4)
    slots.load(1, received)
    with slots.active([1] * 4):
        sampled = layers.base.hidden_states(ids_BT)
    with layers.active([adapter]):
        assert torch.equal(sampled, layers.base.hidden_states(ids_BT))
