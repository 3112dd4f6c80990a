"""Data that a loss cannot take is refused, naming the datum and the key."""

import numpy as np
import pytest

from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.v1 import common_pb2 as pb
from farstep_proto.validation import check_datum, check_loss, resolve_lora

TOKENS = np.array([1, 2, 3], dtype=np.int32)


def good_inputs():
    return {
        "target_tokens": np.array([2, 3, -100]),
        "logprobs": np.zeros(3, dtype=np.float32),
        "advantages": np.ones(3, dtype=np.float32),
    }


def check(inputs, *, tokens=TOKENS, loss="ppo", vocab_size=10, max_seq_len=8):
    check_datum(LOSS_TABLE[loss], tokens, inputs, vocab_size=vocab_size, max_seq_len=max_seq_len, field="data[4]")


def test_good_data_pass():
    check(good_inputs())
    check({"target_tokens": np.array([[1, 2], [3, 4], [-100, -100]])}, loss="cross_entropy")


@pytest.mark.parametrize("loss", sorted(LOSS_TABLE))
def test_default_settings_are_accepted(loss):
    assert check_loss(loss, dict(LOSS_TABLE[loss].defaults)) is LOSS_TABLE[loss]


@pytest.mark.parametrize(
    ("loss", "config", "field"),
    [
        ("nope", {}, "loss_fn"),
        ("ppo", {"beta": 1.0}, "loss_fn_config.beta"),
        ("dro", {"beta": float("nan")}, "loss_fn_config.beta"),
    ],
)
def test_bad_losses(loss, config, field):
    with pytest.raises(InvalidInput) as caught:
        check_loss(loss, config)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"advantages": None}, "data[4].loss_fn_inputs", "advantages"),
        ({"surprise": np.zeros(3, dtype=np.float32)}, "data[4].loss_fn_inputs.surprise", "unknown"),
        ({"advantages": np.zeros(2, dtype=np.float32)}, "data[4].loss_fn_inputs.advantages", "length 2 .* length 3"),
        ({"advantages": np.zeros((3, 2), dtype=np.float32)}, "data[4].loss_fn_inputs.advantages", "shape"),
        ({"advantages": np.array([0, np.nan, 0], dtype=np.float32)}, "data[4].loss_fn_inputs.advantages", "position 1"),
        ({"logprobs": np.array([0, 0, -np.inf], dtype=np.float32)}, "data[4].loss_fn_inputs.logprobs", "position 2"),
        ({"target_tokens": np.array([1, 10, 2])}, "data[4].loss_fn_inputs.target_tokens", "token 10 at position 1"),
        ({"target_tokens": np.array([1, -1, 2])}, "data[4].loss_fn_inputs.target_tokens", "token -1"),
        ({"target_tokens": np.array([1.0, 2.0, 3.0])}, "data[4].loss_fn_inputs.target_tokens", "int64"),
        ({"weights": np.zeros(4, dtype=np.float32)}, "data[4].loss_fn_inputs.weights", "length 4"),
    ],
)
def test_bad_inputs(change, field, says):
    inputs = {key: value for key, value in {**good_inputs(), **change}.items() if value is not None}
    with pytest.raises(InvalidInput, match=says) as caught:
        check(inputs)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("tokens", "says"),
    [([], "no tokens"), ([1] * 9, "at most 8"), ([1, 10, 2], "outside the vocabulary"), ([1, -3, 2], "token -3")],
)
def test_bad_tokens(tokens, says):
    with pytest.raises(InvalidInput, match=says) as caught:
        check(good_inputs(), tokens=np.array(tokens, dtype=np.int32))
    assert caught.value.field == "data[4].model_input"


def test_lora_defaults_are_filled_in():
    resolved = resolve_lora(pb.LoraConfig(rank=4))
    assert (resolved.alpha, resolved.train_attn, resolved.train_mlp, resolved.train_unembed) == (4, True, True, False)
    assert not resolve_lora(pb.LoraConfig(rank=4, train_attn=False)).train_attn
