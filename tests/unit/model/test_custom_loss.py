"""Custom losses against torch itself: what the SDK's tracer records computes what the function computes.

And what nobody's tracer records is refused: by its name, or before it takes memory.
"""

import contextlib
import json
import math
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

from farstep_model.custom_loss import evaluate
from farstep_proto.custom_loss import MAX_BYTES, MAX_NODES, CustomLoss
from farstep_proto.custom_operations import OPERATIONS
from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import training_pb2 as pb

RANKS = {"logprobs": 1, "q": 1, "advantages": 1, "mask": 1, "beta": 0}


def message_of(nodes, ranks=None):
    message = pb.CustomLoss(name="test", nodes=json.dumps(nodes).encode())
    message.inputs.extend(pb.CustomLossInput(name=name, rank=rank) for name, rank in (ranks or RANKS).items())
    return message


def traced(function, ranks=None):
    """As the SDK traces and encodes it, by way of JSON."""
    handle = trace_loss(function, ranks or RANKS, "session")
    nodes = [node.model_dump() for node in encode_graph(handle).nodes]
    return handle, CustomLoss.from_proto(message_of(nodes, ranks))


def inputs_of(num_tokens=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "q": -3 * torch.rand(num_tokens, generator=generator),
        "advantages": torch.randn(num_tokens, generator=generator),
        "mask": torch.arange(num_tokens) % 2,
        "beta": torch.tensor(0.3),
    }


def neg_ll(logprobs, q, advantages, mask, beta):
    loss = -(logprobs * mask).sum()
    return loss, {"custom/nll:sum": loss, "custom/length:mean": mask.sum().float()}


def clipped(logprobs, q, advantages, mask, beta):
    ratio = torch.exp(logprobs - q)
    bounded = torch.clamp(ratio, 0.8, max=float("inf")).clip(max=1.2)
    per_token = -torch.minimum(ratio * advantages, bounded * advantages)
    kl = (q - logprobs).expm1() - (q - logprobs)
    total = torch.where(mask > 0, per_token + beta * kl, torch.zeros_like(per_token))
    share = ((ratio > 1.2) | (ratio < 0.8)).float().mean()
    return total.sum() / mask.sum().clamp(min=1), {"custom/clip_fraction:mean": share.detach()}


def whole_sequence(logprobs, q, advantages, mask, beta):
    log_ratio = (logprobs - q)[mask > 0].mean()
    tail = logprobs[1:] - logprobs[:-1]
    places = torch.arange(logprobs.shape[0]) * math.sqrt(2)
    best = logprobs.max(dim=0).values + logprobs.std(unbiased=False) + logprobs.topk(3).values.sum()
    soft = F.softmax(logprobs, dim=-1).detach() @ logprobs
    loss = -F.logsigmoid(log_ratio) + (tail**2).sum() + (places * logprobs).mean() + best + soft
    return loss + logprobs.cumsum(0)[-1] + torch.logsumexp(logprobs, dim=0), {}


def many_operations(logprobs, q, advantages, mask, beta):
    x = torch.stack([logprobs, q.expand(logprobs.shape[0])], dim=0)
    y = torch.cat([x, x * 2]).reshape(4, -1).t().unsqueeze(0).squeeze(0).permute(1, 0)
    z = F.softplus(y) + F.relu(y) + F.gelu(y) + F.silu(y) + torch.tanh(y) + y.sigmoid() + abs(y) ** 0.5
    z = z + F.huber_loss(y, y.detach() + 2, reduction="none") + F.mse_loss(y, z) + y.to(torch.float64).float()
    z = z - (-y.detach()) // 2 + y % 3 + y.log_softmax(-1) + torch.lerp(y, z, 0.5) + z.masked_fill(z > 1, 0.0)
    index = torch.argsort(logprobs)
    picked = logprobs[index].sum() + torch.gather(logprobs, 0, index).sum() + logprobs.index_select(0, index)[0]
    z += picked + y.norm() + y.amax() + y.var() + torch.outer(logprobs, q).sum() + logprobs.dot(q) + y.ndim
    return z.mean() + float(3) * (1.0 if True else 0.0), {"custom/z:mean": z.mean(), "custom/all:sum": z.sum()}


FUNCTIONS = [neg_ll, clipped, whole_sequence, many_operations]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("num_tokens", [3, 8])
def test_value_gradient_and_metrics_are_torchs(function, num_tokens) -> None:
    handle, loss = traced(function)
    inputs = inputs_of(num_tokens)
    generator = torch.Generator().manual_seed(1)
    p = (-3 * torch.rand(num_tokens, generator=generator)).requires_grad_()
    again = p.detach().clone().requires_grad_()
    found, metrics = evaluate(loss, p, inputs)
    expected, expected_metrics = handle.graph(again, *inputs.values())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, p)[0], torch.autograd.grad(expected, again)[0])
    assert metrics.keys() == expected_metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value, expected_metrics[name].detach())
        assert not value.requires_grad


def test_the_traced_function_is_the_function() -> None:
    inputs = inputs_of()
    p = -torch.rand(7)
    found, _ = evaluate(traced(clipped)[1], p, inputs)
    torch.testing.assert_close(found, clipped(p, *inputs.values())[0])


def test_candidates() -> None:
    def top_k(logprobs, weights):
        return -(logprobs * weights).sum(-1).mean(), {}

    _, loss = traced(top_k, {"logprobs": 2, "weights": 2})
    p, weights = -torch.rand(5, 3), torch.rand(5, 3)
    torch.testing.assert_close(evaluate(loss, p, {"weights": weights})[0], -(p * weights).sum(-1).mean())


def test_inputs_stay_as_they_were() -> None:
    inputs = inputs_of()
    p = -torch.rand(7)
    before = {key: value.clone() for key, value in inputs.items()}
    evaluate(traced(many_operations)[1], p, inputs)
    for key, value in inputs.items():
        assert torch.equal(value, before[key])


# ---- what is refused -------------------------------------------------------------------------------------------------


def graph(*middle, loss="x", metrics=None):
    """A graph of the nodes given between its inputs and what it comes to."""
    output = {"tuple": [{"ref": loss}, {"dict": metrics or {}}]}
    return [
        *({"op": "placeholder", "name": name, "target": name} for name in RANKS),
        *middle,
        {"op": "output", "name": "output", "target": "output", "args": [output]},
    ]


def call(target, *args, name="x", op="call_function", **kwargs):
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


P = {"ref": "logprobs"}
SUM = call("sum", P, op="call_method")


def refused(nodes, ranks=None):
    with pytest.raises(InvalidInput) as caught:
        evaluate(CustomLoss.from_proto(message_of(nodes, ranks)), -torch.rand(300).requires_grad_(), inputs_of(300))
    return caught.value.message


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "builtins.__import__", "eval", "torch.load", "torch.save", "torch.hub.load",
        "torch.ops.load_library", "torch.utils.cpp_extension.load_inline", "operator.attrgetter", "operator.setitem",
        "operator.methodcaller", "operator.lshift", "operator.concat", "math.factorial", "math.comb", "torch.from_file",
        "torch.rand", "torch.bernoulli", "torch.empty", "torch.manual_seed", "torch.compile", "getattr.sum",
        "torch.nn.functional.dropout", "torch.repeat_interleave", "torch.einsum", "torch.__getattribute__", "",
    ],
)  # fmt: skip
def test_functions_that_are_not_listed(target: str) -> None:
    assert "not among the operations" in refused(graph(call(target, P)))


@pytest.mark.parametrize(
    "method",
    ["backward", "item", "numpy", "tolist", "data_ptr", "add_", "register_hook", "__class__", "__reduce_ex__", "apply_",
     "cuda", "share_memory_", "untyped_storage", "storage", "getattr", "operator.add", "math.exp", "repeat",
     "new_zeros", "requires_grad_", "retain_grad", "set_", "map_", "T", "grad", "grad_fn"],
)  # fmt: skip
def test_methods_that_are_not_listed(method: str) -> None:
    assert "not among the operations" in refused(graph(call(method, P, op="call_method")))


@pytest.mark.parametrize(
    "name", ["__class__", "__dict__", "grad_fn", "data", "sum", "__globals__", "storage", "", None, 3, ["shape"]]
)
def test_attributes_that_are_not_listed(name: object) -> None:
    assert "cannot be looked at" in refused(graph(call("getattr", P, name)))


@pytest.mark.parametrize("name", ["values", "indices"])
def test_attributes_that_are_methods_of_a_tensor(name: str) -> None:
    assert f"has no {name}" in refused(graph(call("getattr", P, name)))


@pytest.mark.parametrize("key", ["out", "generator", "requires_grad", "pin_memory", "__class__", "names"])
def test_arguments_by_name_that_are_not_listed(key: str) -> None:
    assert "cannot be given" in refused(graph(call("torch.exp", P, **{key: P})))


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (call("torch.zeros", 1 << 40), "may still make"),
        (call("torch.zeros", {"tuple": [1 << 20, 1 << 20]}), "may still make"),
        (call("torch.zeros", size={"tuple": [1 << 20, 1 << 20]}), "may still make"),
        (call("torch.full", {"tuple": [1 << 40]}, 1.0), "may still make"),
        (call("torch.ones", P), "whole numbers"),
        (call("torch.arange", 1e12), "may still make"),
        (call("torch.arange", 0, end=1 << 40), "may still make"),
        (call("torch.arange", 0, 1, 1e-12), "may still make"),
        (call("torch.arange", 0, 1, 0), "a beginning, an end and a step"),
        (call("torch.arange", {"float": "inf"}), "a beginning, an end and a step"),
        (call("expand", P, 1 << 30, -1, op="call_method"), "may still make"),
        (call("operator.pow", 10, 1 << 50), "range"),
        (call("operator.mul", 1 << 52, 1 << 52), "53 bits"),
        (call("operator.mul", [1], 1 << 40), "tensors and numbers"),
        (call("operator.mul", "x", 1 << 40), "tensors and numbers"),
        (call("operator.mod", "%1000000000d", 1), "tensors and numbers"),
        (call("operator.getitem", "text", 0), "no items"),
        (call("operator.getitem", P, [0, 1]), "one tensor at most"),
        (call("torch.nn.functional.relu", P, True), "in place"),
        (call("torch.exp", 3), "takes a tensor"),
        (call("math.exp", P), "numbers, not tensors"),
        (call("math.exp", 1e9), "range"),
        (call("operator.floordiv", 1, 0), "by zero"),
        (call("torch.add", P, {"ref": "mask"}, P, P), "add"),
        (call("operator.add", P), "add"),
        (call("torch.stack", P), "list of tensors"),
        (call("torch.stack", [1, 2]), "list of tensors"),
        (call("exp", "logprobs", op="call_method"), "only tensors have methods"),
        (call("sum", op="call_method"), "only tensors have methods"),
        (call("to", 3, op="call_method"), "takes a tensor"),
        (call("view", P, 7, op="call_method"), "invalid"),
    ],
)
def test_what_would_take_too_much_or_cannot_be_done(node, says: str) -> None:
    started = time.monotonic()
    message = refused(graph(node))
    assert says in message
    assert "'x'" in message, "names the node"
    assert time.monotonic() - started < 30


def test_numbers_made_on_the_way_add_up() -> None:
    column = call("unsqueeze", P, 1, op="call_method", name="column")
    tables = [call("operator.add", {"ref": "column"}, P, name=f"table_{index}") for index in range(5)]
    assert "may still make" in refused(graph(column, *tables, SUM))  # 5 · 300² are more than 1024 · 300
    accepted = CustomLoss.from_proto(message_of(graph(column, *tables[:2], SUM)))
    evaluate(accepted, -torch.rand(300), inputs_of(300))


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (graph(SUM, loss="nowhere"), "no earlier node"),
        (graph(call("torch.exp", {"ref": "x"})), "no earlier node"),
        (graph(SUM, SUM), "there twice"),
        (graph(call("torch.exp", P)), "not a scalar"),
        (graph(call("getattr", P, "ndim")), "not a scalar"),
        (graph(SUM, metrics={"loss:sum": {"ref": "x"}}), "not a metric"),
        (graph(SUM, metrics={"custom/A:sum": {"ref": "x"}}), "not a metric"),
        (graph(SUM, metrics={"custom/a:max": {"ref": "x"}}), "not a metric"),
        (graph(SUM, metrics={"custom/a:sum": 3}), "not a metric"),
        (graph(SUM, metrics={"custom/a:sum": P}), "not a scalar"),
        (graph(SUM, metrics={f"custom/{n}:sum": {"ref": "x"} for n in range(65)}), "more than 64"),
        (graph(call("sum", {"ref": "q"}, op="call_method")), "does not depend on logprobs"),
        (graph(call("detach", P, op="call_method", name="d"), call("sum", {"ref": "d"}, op="call_method")), "depend"),
        (graph(call("operator.floordiv", P, 2, name="f"), call("sum", {"ref": "f"}, op="call_method")), "derivative"),
        (graph(SUM)[:-1], "the output is the last node"),
        (graph(SUM)[1:], "no earlier node"),
        (graph(SUM)[::-1], "no earlier node"),
        ([], "not a list of 1"),
        ({}, "not a list of 1"),
        (graph(*[call("torch.exp", P, name=f"n{n}") for n in range(MAX_NODES)], SUM), "not a list of 1"),
        (graph(call("torch.exp", P, "y" * MAX_BYTES), SUM), "more than"),
        (graph({"op": "call_module", "name": "x", "target": "linear"}), "no kind of node"),
        (graph({"op": "get_attr", "name": "x", "target": "weight"}), "no kind of node"),
        (graph({"op": "call_function"}), "a node has a name"),
        (graph(7), "not an object"),
        (graph(call("torch.exp", {"code": "1"})), "no argument that is known"),
        (graph(call("torch.exp", {"dtype": "float32.__class__"})), "no argument that is known"),
        (graph(call("torch.exp", {"a": 1, "b": 2})), "no kind of argument"),
        (graph(call("torch.exp", 1 << 70)), "71 bits"),
        (graph(call("torch.exp", {"dict": {"a": 1}})), "a dict"),
        (graph(call("torch.exp", [[[[[[[[[[P]]]]]]]]]])), "too deep"),
        ([*graph(SUM)[:-1], {"op": "output", "name": "o", "target": "o", "args": [{"ref": "x"}]}], "a loss and its"),
    ],
)  # fmt: skip
def test_graphs_that_are_none(nodes, says: str) -> None:
    assert says in refused(nodes)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 60_000, b"\xff", b"null", b'[{"op": NaN}]'])
def test_bytes_that_are_no_graph(data: bytes) -> None:
    message = message_of([])
    message.nodes = data
    with pytest.raises(InvalidInput):
        CustomLoss.from_proto(message)


@pytest.mark.parametrize(
    "ranks",
    [{}, {"q": 1}, {"logprobs": 0}, {"logprobs": 3}, {"logprobs": 1, "Q": 1}, {"logprobs": 1, "target_tokens": 0},
     {"logprobs": 1, **{f"i{n}": 1 for n in range(16)}}],
)  # fmt: skip
def test_inputs_that_are_none(ranks) -> None:
    with pytest.raises(InvalidInput) as caught:
        CustomLoss.from_proto(message_of(graph(SUM), ranks or {"": 1}))
    assert caught.value.field.startswith("custom_loss.inputs")


ARGUMENTS = st.recursive(
    st.sampled_from([P, {"ref": "mask"}, {"ref": "beta"}, {"ellipsis": True}, {"dtype": "int64"}, {"float": "nan"}])
    | st.integers(-3, 1 << 60) | st.floats() | st.none() | st.booleans() | st.sampled_from(["sum", "mean", "shape"]),
    lambda inner: st.lists(inner, max_size=2) | st.builds(lambda x: {"tuple": x}, st.lists(inner, max_size=2))
    | st.builds(lambda x: {"slice": [x, None, None]}, inner),
    max_leaves=3,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    target=st.sampled_from(sorted(OPERATIONS)),
    args=st.lists(ARGUMENTS, max_size=3),
    op=st.sampled_from(["call_function", "call_method"]),
    keys=st.dictionaries(st.sampled_from(["dim", "keepdim", "size", "min", "start", "p", "dtype", "k"]), ARGUMENTS),
)
@pytest.mark.filterwarnings("ignore")
def test_any_operation_with_any_arguments_is_done_or_refused(target, args, op, keys) -> None:
    full = target if "." in target or target == "getattr" else f"torch.{target}"
    node = call(full if op == "call_function" else target, *args, op=op, **keys)
    after = call("sum", P, op="call_method", name="y")
    try:
        loss = CustomLoss.from_proto(message_of(graph(node, after, loss="y")))
        evaluate(loss, -torch.rand(30), inputs_of(30))
    except InvalidInput:
        pass


def test_every_operation_is_there() -> None:
    """One that torch does not have would fail as a mistake of ours, and not of the graph's."""
    for target in OPERATIONS:
        full = target if "." in target or target == "getattr" else f"torch.{target}"
        after = call("sum", P, name="y", op="call_method")
        loss = CustomLoss.from_proto(message_of(graph(call(full, P), after, loss="y")))
        with contextlib.suppress(InvalidInput):  # for arguments that it cannot take
            evaluate(loss, -torch.rand(5), inputs_of(5))
