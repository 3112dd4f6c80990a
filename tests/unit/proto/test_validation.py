"""Data that a loss cannot take is refused, naming the datum and the key."""

import numpy as np
import pytest

from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.v1 import common_pb2 as pb
from farstep_proto.validation import check_adapter, check_datum, check_loss, check_num_data, resolve_lora

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
        ("cross_entropy", {"normalizer": 0.0}, "loss_fn_config.normalizer"),
        ("dpo", {"normalizer": float("inf")}, "loss_fn_config.normalizer"),
        ("ppo", {"kl_coef": -1.0}, "loss_fn_config.kl_coef"),
        ("dpo", {"kl_coef": 1.0}, "loss_fn_config.kl_coef"),
        ("ipo", {"beta": 0.0}, "loss_fn_config.beta"),
        ("dpo", {"label_smoothing": 0.6}, "loss_fn_config.label_smoothing"),
        ("gspo", {"clip_low_threshold": 1.1}, "loss_fn_config.clip_low_threshold"),
        ("stable_reinforce", {"alpha": -0.1}, "loss_fn_config.alpha"),
        ("stable_reinforce", {"kl_coef": -0.1}, "loss_fn_config.kl_coef"),
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


def test_a_distance_to_a_reference_needs_the_reference():
    with pytest.raises(InvalidInput, match="missing 'ref_logprobs'") as caught:
        check_datum(
            check_loss("ppo", {"kl_coef": 0.1}), TOKENS, good_inputs(), vocab_size=10, max_seq_len=8, field="data[4]"
        )
    assert caught.value.field == "data[4].loss_fn_inputs"
    check({**good_inputs(), "ref_logprobs": np.zeros(3, dtype=np.float32)})


@pytest.mark.parametrize(
    ("loss", "change", "field", "says"),
    [
        ("dpo", {"target_tokens": np.full(3, -100)}, "target_tokens", "no token"),
        ("ipo", {"weights": np.zeros(3, dtype=np.float32)}, "target_tokens", "no token"),
        ("gspo", {"sequence_ratio_mask": np.array([0, 0, 1], dtype=np.float32)}, "sequence_ratio_mask", "no token"),
        ("gspo", {"sequence_ratio_mask": np.array([0, 2, 1], dtype=np.float32)}, "sequence_ratio_mask", "0 or 1"),
        ("ppo", {"sequence_ratio_mask": np.ones(3, dtype=np.float32)}, "sequence_ratio_mask", "unknown"),
        ("ppo", {"clip_low_threshold": np.array([0, np.nan, 0], dtype=np.float32)}, "clip_low_threshold", "position 1"),
        ("cispo", {"clip_high_threshold": np.zeros((3, 1), dtype=np.float32)}, "clip_high_threshold", "shape"),
        ("dro", {"clip_high_threshold": np.ones(3, dtype=np.float32)}, "clip_high_threshold", "unknown"),
        (
            "gspo",
            {
                "clip_low_threshold": np.array([0, 0, 2], dtype=np.float32),
                "clip_high_threshold": np.ones(3, dtype=np.float32),
            },
            "clip_low_threshold",
            "position 2",
        ),
    ],
)
def test_bad_sequences(loss, change, field, says):
    inputs = {**good_inputs(), "ref_logprobs": np.zeros(3, dtype=np.float32)}
    spec = LOSS_TABLE[loss]
    inputs = {key: value for key, value in inputs.items() if key in (*spec.required, *spec.optional)}
    check(inputs, loss=loss)
    with pytest.raises(InvalidInput, match=says) as caught:
        check({**inputs, **change}, loss=loss)
    assert caught.value.field == f"data[4].loss_fn_inputs.{field}"


def test_pairs_are_even():
    check_num_data(LOSS_TABLE["dpo"], 4, field="data")
    check_num_data(LOSS_TABLE["ppo"], 3, field="data")
    for loss, number in (("dpo", 3), ("ppo", 0)):
        with pytest.raises(InvalidInput) as caught:
            check_num_data(LOSS_TABLE[loss], number, field="data")
        assert caught.value.field == "data"


def test_only_the_current_weights_take_a_gradient():
    check_adapter("base", backward=False)
    for name, backward in (("base", True), ("other", False)):
        with pytest.raises(InvalidInput) as caught:
            check_adapter(name, backward=backward)
        assert caught.value.field == "adapter"
