"""The settings of an adapter: defaults, limits, and their message."""

import pytest

from farstep_model.spec import LoraSpec
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2 as pb
from farstep_proto.validation import MAX_LORA_RANK


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_without_alpha_the_scaling_is_one(alpha: float | None) -> None:
    assert LoraSpec(rank=12, alpha=alpha).scaling == 1.0


def test_rank_stabilised_scaling_falls_with_the_root_of_the_rank() -> None:
    assert LoraSpec(16, 8.0, use_rslora=True).scaling == 2.0
    assert LoraSpec(16, use_rslora=True).scaling == 4.0


def test_message_and_back() -> None:
    switches = {"train_attn": False, "train_mlp": True, "train_unembed": True, "use_rslora": True, "value_head": True}
    spec = LoraSpec(4, 6.0, 0.25, ("q_proj", "v_proj"), **switches)
    assert spec.scaling == 3.0
    assert LoraSpec.from_proto(spec.to_proto()) == spec


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.LoraConfig(rank=0, train_attn=True), "lora.rank"),
        (pb.LoraConfig(rank=MAX_LORA_RANK + 1, train_attn=True), "lora.rank"),
        (pb.LoraConfig(rank=4, alpha=-1, train_attn=True), "lora.alpha"),
        (pb.LoraConfig(rank=4, alpha=float("nan"), train_attn=True), "lora.alpha"),
        (pb.LoraConfig(rank=4, dropout=1.0, train_attn=True), "lora.dropout"),
        (pb.LoraConfig(rank=4, dropout=float("nan"), train_attn=True), "lora.dropout"),
        (pb.LoraConfig(rank=4, target_modules=[""]), "lora.target_modules"),
        (pb.LoraConfig(rank=4, train_attn=False, train_mlp=False), "lora"),
    ],
)
def test_a_wrong_setting_is_named(message: pb.LoraConfig, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        LoraSpec.from_proto(message)
    assert caught.value.field == field
