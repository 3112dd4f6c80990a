"""Every bad body is refused by the name of its field."""

import dataclasses
import math

import numpy as np
import pytest

from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.tensors import model_input_to_proto, tensor_to_proto
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.submission import AdamSettings, Limits, Pass, Skip, parse_call, request_type

LIMITS = Limits(vocab_size=50, max_seq_len=8)
ADAM = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


def datum(tokens=(1, 2, 3), **inputs):
    inputs = {"target_tokens": [2, 3, 4], **inputs}
    return common_pb2.Datum(
        model_input=model_input_to_proto(list(tokens)),
        loss_fn_inputs={key: tensor_to_proto(np.array(value)) for key, value in inputs.items() if value is not None},
    )


def policy_datum(**inputs):
    return datum(**{"logprobs": [-1.0, -1.0, -1.0], "advantages": [1.0, 1.0, 1.0], **inputs})


def value_datum(**inputs):
    return datum(**{"target_tokens": None, "returns": [0.5, 0.0, 1.0], "values": [0.0, 0.1, 0.2], **inputs})


def forward(*data, loss_fn="cross_entropy", **config):
    return pb.ForwardRequest(data=data, loss_fn=loss_fn, loss_fn_config=config)


BAD = {
    "no data": (forward(), "data"),
    "unknown loss": (forward(datum(), loss_fn="mse"), "loss_fn"),
    "unknown setting": (forward(datum(), loss_fn="ppo", beta=1.0), "loss_fn_config.beta"),
    "infinite setting": (forward(policy_datum(), loss_fn="dro", beta=math.inf), "loss_fn_config.beta"),
    "empty input": (forward(datum(), datum(tokens=())), "data[1].model_input"),
    "token too large": (forward(datum(tokens=(1, 50, 2))), "data[0].model_input"),
    "negative token": (forward(datum(tokens=(1, -1, 2))), "data[0].model_input"),
    "too long": (forward(datum(tokens=range(9), target_tokens=range(9))), "data[0].model_input"),
    "image": (
        forward(common_pb2.Datum(model_input={"chunks": [{"image": {"data": b"x"}}]})),
        "data[0].model_input.chunks[0]",
    ),
    "target too large": (forward(datum(target_tokens=[1, 2, 50])), "data[0].loss_fn_inputs.target_tokens"),
    "float targets": (forward(datum(target_tokens=[1.0, 2.0, 3.0])), "data[0].loss_fn_inputs.target_tokens"),
    "no targets": (forward(datum(target_tokens=None)), "data[0].loss_fn_inputs"),
    "wrong length": (forward(datum(target_tokens=[1, 2])), "data[0].loss_fn_inputs.target_tokens"),
    "NaN weight": (forward(datum(weights=[1.0, math.nan, 1.0])), "data[0].loss_fn_inputs.weights"),
    "NaN advantage": (
        forward(policy_datum(), policy_datum(advantages=[1.0, math.nan, 0.0]), loss_fn="ppo"),
        "data[1].loss_fn_inputs.advantages",
    ),
    "infinite return": (
        forward(value_datum(returns=[0.0, math.inf, 0.0]), loss_fn="value"),
        "data[0].loss_fn_inputs.returns",
    ),
    "no old values": (forward(value_datum(values=None), loss_fn="value"), "data[0].loss_fn_inputs"),
    "values to a gradient of nothing": (
        forward(value_datum(values=None, returns=None), loss_fn="value"),
        "data[0].loss_fn_inputs",
    ),
    "returns of another length": (
        forward(value_datum(returns=[0.0, 1.0]), loss_fn="value"),
        "data[0].loss_fn_inputs.returns",
    ),
    "negative clip of values": (forward(value_datum(), loss_fn="value", clip=-0.1), "loss_fn_config.clip"),
    "negative coef": (forward(value_datum(), loss_fn="value", coef=-0.5), "loss_fn_config.coef"),
    "a policy's input": (
        forward(value_datum(advantages=[1.0, 1.0, 1.0]), loss_fn="value"),
        "data[0].loss_fn_inputs.advantages",
    ),
    "missing advantages": (forward(policy_datum(advantages=None), loss_fn="ppo"), "data[0].loss_fn_inputs"),
    "unknown input": (forward(datum(mask=[1.0, 1.0, 1.0])), "data[0].loss_fn_inputs.mask"),
    "weights of another shape": (
        forward(datum(target_tokens=[[1, 2], [2, 3], [3, 4]], weights=[1.0, 1.0, 1.0])),
        "data[0].loss_fn_inputs.weights",
    ),
    "half a pair": (forward(datum(ref_logprobs=[-1.0] * 3), loss_fn="dpo"), "data"),
    "no reference": (forward(policy_datum(), loss_fn="ppo", kl_coef=0.1), "data[0].loss_fn_inputs"),
    "unknown adapter": (pb.ForwardRequest(data=[datum()], loss_fn="cross_entropy", adapter="old"), "adapter"),
    "gradient of the base": (pb.ForwardRequest(data=[datum()], loss_fn="cross_entropy", adapter="base"), "adapter"),
    "negative rate": (pb.OptimStepRequest(**{**ADAM, "learning_rate": -1}), "learning_rate"),
    "NaN rate": (pb.OptimStepRequest(**{**ADAM, "learning_rate": math.nan}), "learning_rate"),
    "beta1 of 1": (pb.OptimStepRequest(**{**ADAM, "beta1": 1}), "beta1"),
    "negative beta2": (pb.OptimStepRequest(**{**ADAM, "beta2": -0.1}), "beta2"),
    "eps of 0": (pb.OptimStepRequest(**{**ADAM, "eps": 0}), "eps"),
    "negative decay": (pb.OptimStepRequest(**ADAM, weight_decay=-1), "weight_decay"),
    "infinite clip": (pb.OptimStepRequest(**ADAM, grad_clip_norm=math.inf), "grad_clip_norm"),
    "negative clip": (pb.OptimStepRequest(**ADAM, grad_clip_norm=-1), "grad_clip_norm"),
    "no name": (pb.SaveStateRequest(), "name"),
    "slash in name": (pb.SaveStateRequest(name="../up"), "name"),
    "ttl of 0": (pb.SaveStateRequest(name="x", ttl_seconds=0), "ttl_seconds"),
    "publish slash": (pb.PublishRequest(name="a/b"), "name"),
    "publish ttl without name": (pb.PublishRequest(ttl_seconds=5), "ttl_seconds"),
    "path": (pb.LoadStateRequest(path="/etc/passwd"), "path"),
    "path with a slash in its name": (pb.LoadStateRequest(path="bt://loops:r/weights/a/b"), "path"),
    "rank of 0": (pb.ResetRequest(), "lora_rank"),
    "rank too large": (pb.ResetRequest(lora_rank=100_000), "lora_rank"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_field(case):
    message, field = BAD[case]
    with pytest.raises(InvalidInput) as caught:
        parse_call("forward_backward", message, dataclasses.replace(LIMITS, has_value_head=True))
    assert caught.value.field == field
    assert caught.value.message


@pytest.mark.parametrize("verb", ["forward", "forward_backward"])
def test_values_need_a_value_head(verb):
    with pytest.raises(InvalidInput, match="no value head") as caught:
        parse_call(verb, forward(value_datum(), loss_fn="value"), LIMITS)
    assert caught.value.field == "loss_fn"
    assert "value_head=True" in caught.value.hint
    based = pb.ForwardRequest(data=[value_datum()], loss_fn="value", adapter="base")
    with pytest.raises(InvalidInput, match="base model has no value head") as caught:
        parse_call("forward", based, dataclasses.replace(LIMITS, has_value_head=True))
    assert caught.value.field == "adapter"


def test_a_forward_pass_gives_values_without_anything_to_compare_them_with():
    limits = dataclasses.replace(LIMITS, has_value_head=True)
    bare = value_datum(returns=None, values=None)
    with_returns, without = parse_call("forward", forward(value_datum(), bare, loss_fn="value"), limits).examples
    assert with_returns.inputs.keys() == {"target_tokens", "returns", "values"}
    assert without.inputs["weights"].tolist() == [0, 0, 0]
    masked = value_datum(returns=None, values=None, target_tokens=[-100, 2, 3])
    (masked,) = parse_call("forward", forward(masked, loss_fn="value"), limits).examples
    assert masked.inputs["target_tokens"].tolist() == [-100, 2, 3]
    with pytest.raises(InvalidInput, match="missing 'values'") as caught:
        parse_call("forward", forward(value_datum(values=None), loss_fn="value"), limits)
    assert caught.value.field == "data[0].loss_fn_inputs"


def test_fields_of_a_part_say_which_part():
    with pytest.raises(InvalidInput) as caught:
        parse_call("forward", forward(datum(), datum(tokens=())), LIMITS, where="part[2].")
    assert caught.value.field == "part[2].data[1].model_input"


def test_a_good_pass_comes_through_with_floats_as_float32():
    call = parse_call("forward_backward", forward(datum(weights=[1, 0, 2])), LIMITS)
    assert isinstance(call, Pass)
    assert call.backward
    assert call.num_tokens == 3
    assert call.examples[0].inputs["weights"].dtype == np.float32
    assert call.examples[0].inputs["weights"].tolist() == [1, 0, 2]
    assert not parse_call("forward", forward(datum()), LIMITS).backward


def test_the_weights_of_a_forward_pass_can_be_chosen():
    assert parse_call("forward", forward(datum()), LIMITS).adapter == "current"
    message = pb.ForwardRequest(data=[datum()], loss_fn="cross_entropy", adapter="start")
    assert parse_call("forward", message, LIMITS).adapter == "start"


def test_edges_that_are_allowed():
    assert isinstance(parse_call("skip", pb.SkipRequest(), LIMITS), Skip)
    zero = parse_call("optim_step", pb.OptimStepRequest(learning_rate=0, beta1=0, beta2=0, eps=1e-12), LIMITS)
    assert zero == AdamSettings(0, 0, 0, 1e-12, 0, 0)
    parse_call("forward", forward(datum(target_tokens=[-100, -100, 49])), LIMITS)
    parse_call("publish", pb.PublishRequest(), LIMITS)


def test_unknown_verb():
    with pytest.raises(NotFound, match="explode") as caught:
        request_type("explode")
    assert "forward_backward" in caught.value.hint
