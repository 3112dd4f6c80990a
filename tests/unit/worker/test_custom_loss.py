"""Passes of a custom loss: as the same function of the log-probabilities of a forward pass, by the chain rule."""

import dataclasses

import numpy as np
import pytest
import torch

from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import tensor_to_proto
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.gradients import run_pass
from farstep_worker.submission import Example, Limits, Pass, parse_call
from tests.unit.worker.conftest import GRAPH

LIMITS = Limits(4096, 128)


def by_hand(call, logprobs):
    """The loss of `conftest.GRAPH`, its metric, and what it costs by each log-probability."""
    total, slopes, counts = 0.0, [], []
    for example, values in zip(call.examples, logprobs, strict=True):
        p_T = torch.tensor(values, requires_grad=True)
        weights, mask, factor = (torch.tensor(example.inputs[f"custom.{key}"]) for key in ("weights", "mask", "factor"))
        loss = -(p_T * weights * mask).sum() * factor[0]
        loss.backward()
        total += loss.item()
        slopes.append(p_T.grad.numpy())
        counts.append(mask.sum().item())
    return total, slopes, float(np.mean(counts))


@pytest.mark.parametrize("token_budget", [1, 24, 1000])
def test_value_gradient_and_metrics(make_run, make_custom_pass, token_budget):
    adapter = make_run(warm=True).adapter
    call = make_custom_pass()
    result = run_pass(adapter, call, token_budget=token_budget, dropout_seed=0)
    plain = [Example(e.tokens, {"target_tokens": e.inputs["target_tokens"]}) for e in call.examples]
    forward = run_pass(adapter, Pass("cross_entropy", {}, tuple(plain), False), token_budget=1000, dropout_seed=0)
    for found, expected in zip(result.outputs, forward.outputs, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    total, slopes, mean_count = by_hand(call, forward.outputs)
    assert result.loss_sum == pytest.approx(total, rel=1e-5)
    assert result.metrics["custom/mask:mean"] == pytest.approx(mean_count)
    assert result.metrics["data:sum"] == 4
    linear = [
        Example(e.tokens, {"target_tokens": e.inputs["target_tokens"], "weights": -slope})
        for e, slope in zip(call.examples, slopes, strict=True)
    ]
    expected = run_pass(adapter, Pass("cross_entropy", {}, tuple(linear), True), token_budget=1000, dropout_seed=0)
    norm = torch.sqrt(sum((g**2).sum() for g in expected.gradients))
    apart = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(result.gradients, expected.gradients, strict=True)))
    assert norm > 0
    assert apart / norm <= 1e-5  # fp32, sums in another order


def test_a_forward_pass_has_the_same_numbers(make_run, make_custom_pass):
    adapter = make_run(warm=True).adapter
    backward = run_pass(adapter, make_custom_pass(), token_budget=64, dropout_seed=0)
    forward = run_pass(adapter, make_custom_pass(backward=False), token_budget=64, dropout_seed=0)
    assert forward.gradients is None
    assert (forward.loss_sum, forward.metrics) == (backward.loss_sum, backward.metrics)


def test_data_of_different_forms_do_not_share_a_batch(make_run, make_custom_pass):
    adapter = make_run(warm=True).adapter
    call = make_custom_pass()
    call.examples[1].inputs["custom.mask"] = call.examples[1].inputs["custom.mask"].astype(np.float32)
    result = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert result.loss_sum == pytest.approx(
        run_pass(adapter, make_custom_pass(), token_budget=1000, dropout_seed=0).loss_sum, rel=1e-5
    )


def test_a_loss_that_is_not_finite_names_its_datum(executor, make_run, make_custom_pass):
    make_run(warm=True)
    call = make_custom_pass()
    call.examples[2].inputs["custom.factor"][:] = np.inf
    error = executor.execute("run", call).operation.error
    assert (error.error_class, error.field) == ("NonFiniteError", "data[2]")


def test_a_graph_that_fails_is_an_outcome_and_changes_nothing(executor, make_run, make_custom_pass):
    run = make_run(warm=True)
    nodes = [dict(node) for node in GRAPH]
    nodes[6] = {**nodes[6], "target": "view", "args": [{"ref": "mul_1"}, 7, 7]}
    error = executor.execute("run", make_custom_pass(nodes=nodes)).operation.error
    assert error.error_class == "ValidationError"
    assert "'sum_1', view" in error.message
    assert run.gradients is None


def test_the_loss_by_datum_is_for_people(executor, make_run, make_custom_pass):
    make_run(warm=True)
    output = executor.execute("run", make_custom_pass()).operation.forward_backward
    assert output.loss == pytest.approx(output.metrics["loss:sum"] / 4)


@pytest.mark.parametrize(
    ("key", "array", "field"),
    [
        ("weights", None, "data[0].loss_fn_inputs"),
        ("weights", np.zeros(4, np.float32), "data[0].loss_fn_inputs.weights"),
        ("weights", np.zeros((5, 1), np.float32), "data[0].loss_fn_inputs.weights"),
        ("factor", np.zeros(2, np.float32), "data[0].loss_fn_inputs.factor"),
        ("target_tokens", np.zeros((5, 2), np.int64), "data[0].loss_fn_inputs.target_tokens"),
        ("target_tokens", np.full(5, -100), "data[0].loss_fn_inputs.target_tokens"),
        ("target_tokens", np.full(5, 10**6), "data[0].loss_fn_inputs.target_tokens"),
        ("target_tokens", np.zeros(5, np.float32), "data[0].loss_fn_inputs.target_tokens"),
    ],
)
def test_data_that_do_not_fit_are_refused_by_name(make_custom_pass, key, array, field):
    call = make_custom_pass(lengths=(5,))
    request = pb.ForwardRequest(loss_fn="custom", custom_loss=call.custom.to_proto())
    datum = request.data.add()
    datum.model_input.chunks.add().encoded_text.ids.extend(call.examples[0].tokens.tolist())
    inputs = {name.removeprefix("custom."): value for name, value in call.examples[0].inputs.items()}
    inputs["factor"] = inputs["factor"][:1]
    for name, value in inputs.items():
        datum.loss_fn_inputs[name].CopyFrom(tensor_to_proto(value))
    assert parse_call("forward", request, LIMITS).examples[0].inputs.keys() == call.examples[0].inputs.keys()
    if array is None:
        del datum.loss_fn_inputs[key]
    else:
        datum.loss_fn_inputs[key].CopyFrom(tensor_to_proto(array))
    with pytest.raises(InvalidInput) as caught:
        parse_call("forward", request, LIMITS)
    assert caught.value.field == field


def test_a_custom_loss_has_no_settings(make_custom_pass):
    request = pb.ForwardRequest(loss_fn="custom", loss_fn_config={"normalizer": 2.0})
    request.custom_loss.CopyFrom(make_custom_pass().custom.to_proto())
    with pytest.raises(InvalidInput) as caught:
        parse_call("forward", request, LIMITS)
    assert caught.value.field == "loss_fn_config.normalizer"


def test_candidates_and_numbers_of_every_rank(make_run, make_custom_pass):
    """[T, K] targets: the same graph over both dimensions."""
    adapter = make_run(warm=True).adapter
    call = make_custom_pass(lengths=(4,))
    wide = {key: np.stack([array, array], 1) for key, array in call.examples[0].inputs.items()}
    ranks = {"logprobs": 2, "weights": 2, "mask": 2, "factor": 2}
    custom = dataclasses.replace(call.custom, ranks=ranks)
    twice = dataclasses.replace(call, examples=(Example(call.examples[0].tokens, wide),), custom=custom)
    with pytest.raises(InvalidInput, match="not a scalar"):  # times a factor of [T, K]
        run_pass(adapter, twice, token_budget=64, dropout_seed=0)
    both = dataclasses.replace(custom, ranks={**ranks, "factor": 0})
    wide["custom.factor"] = call.examples[0].inputs["custom.factor"]
    result = run_pass(adapter, dataclasses.replace(twice, custom=both), token_budget=64, dropout_seed=0)
    once = run_pass(adapter, call, token_budget=64, dropout_seed=0)
    assert result.loss_sum == pytest.approx(2 * once.loss_sum, rel=1e-5)
