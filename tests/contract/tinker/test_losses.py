"""Every loss through the real SDK: what Farstep's own client gets, and what plain torch says of the same numbers."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tinker
import torch
from tinker import types

import farstep

pytestmark = pytest.mark.timeout(240)

TOKENS = [[1, 40, 41, 42, 50, 51, 52, 53], [1, 60, 61, 70, 71, 72]]
PROMPT = 2  # targets before this one were given, not sampled
ADAM = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}

FORMULAS = {
    "cross_entropy": lambda p, given: -p * given["weights"],
    "importance_sampling": lambda p, given: -(p - given["logprobs"]).exp() * given["advantages"],
    "ppo": lambda p, given: _ppo((p - given["logprobs"]).exp(), given),
    "cispo": lambda p, given: -_clip((p - given["logprobs"]).exp(), given, 0.0, 4.0) * p * given["advantages"],
    "dro": lambda p, given: -(p * given["advantages"] - 0.5 * 0.05 * (p - given["logprobs"]) ** 2),
    "gspo": lambda p, given: _gspo(p, given),
    "stable_reinforce": lambda p, given: (
        -(p - given["logprobs"]).exp().clip(max=1) * p * given["advantages"] * given["sampled"]
    ),
}
INPUTS = {
    "cross_entropy": ("weights",),
    "gspo": ("logprobs", "advantages", "sequence_ratio_mask"),
}
POLICY_INPUTS = ("logprobs", "advantages")


def _clip(ratio, given, low, high):
    return ratio.clip(
        given.get("clip_low_threshold", torch.tensor(low)), given.get("clip_high_threshold", torch.tensor(high))
    )


def _ppo(ratio, given):
    return -torch.minimum(ratio * given["advantages"], _clip(ratio, given, 0.8, 1.2) * given["advantages"])


def _gspo(p, given):
    ratio = (p - given["logprobs"])[given["sequence_ratio_mask"] > 0].mean().exp()
    return -torch.minimum(ratio * given["advantages"], ratio.clip(1 - 3e-4, 1 + 3e-4) * given["advantages"])


def inputs_of(index):
    """All that any loss takes of a datum; nothing of what was not sampled."""
    num = len(TOKENS[index]) - 1
    rng = np.random.default_rng(index)
    sampled = (np.arange(num) >= PROMPT).astype(np.float32)
    return {
        "target_tokens": np.array(TOKENS[index][1:], dtype=np.int64),
        "weights": sampled,
        "logprobs": (-6.2 + rng.normal(0, 0.4, num)).astype(np.float32) * sampled,
        "advantages": rng.normal(0, 1, num).astype(np.float32) * sampled,
        "sequence_ratio_mask": sampled,
        "clip_low_threshold": rng.uniform(0.5, 0.9, num).astype(np.float32),
        "clip_high_threshold": rng.uniform(1.1, 1.5, num).astype(np.float32),
        "sampled": sampled,
    }


def numbers_of(index, keys):
    """Those that a loss was given, in torch."""
    return {
        key: torch.from_numpy(value).double() for key, value in inputs_of(index).items() if key in (*keys, "sampled")
    }


def tinker_data(*keys, spans=False):
    data = []
    for index, tokens in enumerate(TOKENS):
        given = inputs_of(index)
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={key: tinker.TensorData.from_numpy(given[key]) for key in ("target_tokens", *keys)},
        )
        data.append(with_spans(datum, len(tokens) - 1) if spans else datum)
    return data


def with_spans(datum, num_targets):
    prompt, sampled = tinker.PromptProvenanceSpan, tinker.SampledProvenanceSpan
    return datum.with_provenance(
        [prompt(sequence_id="s", length=PROMPT + 1), sampled(sequence_id="s", length=num_targets - PROMPT - 1)],
        [prompt(sequence_id="s", offset=1, length=PROMPT), sampled(sequence_id="s", length=num_targets - PROMPT)],
    )


def farstep_data(*keys):
    data = []
    for index, tokens in enumerate(TOKENS):
        given = inputs_of(index)
        data.append(
            farstep.Datum(
                farstep.ModelInput.from_ints(tokens[:-1]), {key: given[key] for key in ("target_tokens", *keys)}
            )
        )
    return data


@pytest.fixture(scope="module")
def farstep_client(tinker_url):
    from tests.support.processes import KEY

    with farstep.ServiceClient(base_url=tinker_url, api_key=KEY) as service:
        yield service


@pytest.fixture(scope="module")
def service(tinker_url, tinker_key):
    service = tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key)
    yield service
    service.close("success")


@pytest.fixture(scope="module")
def models(service, farstep_client):
    """The same model twice, of either SDK; no step is ever taken that changes it, for the learning rate is 0."""
    theirs = service.create_lora_training_client("farstep/tiny", rank=4, seed=7).result()
    ours = farstep_client.create_lora_training_client("farstep/tiny", rank=4, seed=7, train_unembed=True)
    return theirs, ours


STILL = {**ADAM, "learning_rate": 0.0}


def norm_of(model):
    """Of the gradients that there are; the model stays as it is."""
    return model.optim_step(types.AdamParams(**STILL)).result().metrics["grad_norm:mean"]


BOUNDS = ("clip_low_threshold", "clip_high_threshold")


@pytest.mark.parametrize(
    ("loss_fn", "bounds"), [*((loss_fn, ()) for loss_fn in FORMULAS), ("ppo", BOUNDS), ("cispo", BOUNDS)]
)
def test_a_loss_is_the_same_from_both_clients_and_in_torch(models, loss_fn, bounds):
    theirs, ours = models
    keys = (*INPUTS.get(loss_fn, POLICY_INPUTS), *bounds)
    result = theirs.forward_backward(tinker_data(*keys, spans=loss_fn == "stable_reinforce"), loss_fn).result()
    own_keys = (*keys, "weights") if loss_fn == "stable_reinforce" else keys
    own = ours.forward_backward(farstep_data(*own_keys), loss_fn).result()
    assert result.metrics["loss:sum"] == own.metrics["loss:sum"]
    assert norm_of(theirs) == ours.optim_step(farstep.AdamParams(**STILL)).result().metrics["grad_norm"]
    total = 0.0
    for index, output in enumerate(result.loss_fn_outputs):
        p = torch.tensor(output["logprobs"].data, dtype=torch.float64)
        given = {
            key: torch.from_numpy(value).double()
            for key, value in inputs_of(index).items()
            if key in (*keys, "sampled")
        }
        total += FORMULAS[loss_fn](p, given).sum().item()
        np.testing.assert_array_equal(output["logprobs"].to_numpy(), own.loss_fn_outputs[index]["logprobs"].to_numpy())
    assert result.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("loss_fn", sorted(set(FORMULAS) - {"cross_entropy"}))
def test_gradients_are_torchs(models, loss_fn):
    """By the chain rule: −∂loss/∂p as the weights of a cross-entropy gives the same gradient."""
    theirs, _ = models
    keys = INPUTS.get(loss_fn, POLICY_INPUTS)
    result = theirs.forward_backward(tinker_data(*keys, spans=loss_fn == "stable_reinforce"), loss_fn).result()
    norm = norm_of(theirs)
    linear = []
    for index, output in enumerate(result.loss_fn_outputs):
        p = torch.tensor(output["logprobs"].data, dtype=torch.float64, requires_grad=True)
        given = {
            key: torch.from_numpy(value).double()
            for key, value in inputs_of(index).items()
            if key in (*keys, "sampled")
        }
        detached = {"cispo": _cispo_slope, "stable_reinforce": _stable_slope, "gspo": _gspo_slope}.get(loss_fn)
        if detached is not None:
            slope = detached(p.detach(), given)
        else:
            FORMULAS[loss_fn](p, given).sum().backward()
            slope = p.grad
        datum = tinker_data()[index]
        datum.loss_fn_inputs["weights"] = tinker.TensorData.from_torch(-slope.float())
        linear.append(datum)
    theirs.forward_backward(linear, "cross_entropy").result()
    assert norm > 0
    assert norm == pytest.approx(norm_of(theirs), rel=1e-5)


def _cispo_slope(p, given):
    return -_clip((p - given["logprobs"]).exp(), given, 0.0, 4.0) * given["advantages"]


def _stable_slope(p, given):
    return -(p - given["logprobs"]).exp().clip(max=1) * given["advantages"] * given["sampled"]


def _gspo_slope(p, given):
    ratio = (p - given["logprobs"])[given["sequence_ratio_mask"] > 0].mean().exp()
    advantages = given["advantages"]
    is_free = ratio * advantages <= ratio.clip(1 - 3e-4, 1 + 3e-4) * advantages
    return -ratio * advantages * is_free


def test_settings_arrive(models):
    theirs, ours = models
    for loss_fn, config in (
        ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 0.9}),
        ("dro", {"beta": 0.7}),
        ("stable_reinforce", {"alpha": 0.5, "kl_coef": 0.1}),
    ):
        result = theirs.forward(tinker_data(*POLICY_INPUTS), loss_fn, config).result()
        own = ours.forward(farstep_data(*POLICY_INPUTS), loss_fn, config).result()
        plain = ours.forward(farstep_data(*POLICY_INPUTS), loss_fn).result()
        assert result.metrics["loss:sum"] == own.metrics["loss:sum"] != plain.metrics["loss:sum"]


@pytest.mark.parametrize("is_sparse", [False, True])
def test_cross_entropy_of_several_candidates(models, is_sparse):
    theirs, _ = models
    num, k = len(TOKENS[0]) - 1, 12
    targets = torch.zeros(num, k, dtype=torch.int64)
    weights = torch.zeros(num, k)
    for place in range(num):
        targets[place, place] = 90 + place
        weights[place, place] = 0.25
    if not is_sparse:
        targets[:, -1], weights[:, -1] = 5, 0.5
        pack = tinker.TensorData.from_torch
    else:
        pack = tinker.TensorData.from_torch_sparse
        assert pack(weights).sparse_crow_indices is not None
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[0][:-1]),
        loss_fn_inputs={"target_tokens": pack(targets), "weights": pack(weights)},
    )
    result = theirs.forward([datum], "cross_entropy").result()
    p = result.loss_fn_outputs[0]["logprobs"].to_torch()
    assert p.shape == (num, k)
    assert result.metrics["loss:sum"] == pytest.approx(-(p * weights).sum().item(), rel=1e-5)
    plain = theirs.forward(tinker_data("weights")[:1], "cross_entropy").result()
    assert plain.loss_fn_outputs[0]["logprobs"].shape == [num]


def test_data_of_different_widths_in_one_call(models):
    theirs, _ = models
    data = tinker_data("weights")
    wide = types.Datum(
        model_input=data[0].model_input,
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.full((7, 3), 9)),
            "weights": tinker.TensorData.from_numpy(np.ones((7, 3), np.float32)),
        },
    )
    result = theirs.forward([data[0], wide, data[1]], "cross_entropy").result()
    assert [output["logprobs"].shape for output in result.loss_fn_outputs] == [[7], [7, 3], [5]]


def test_a_forward_pass_without_weights(models):
    theirs, _ = models
    bare = theirs.forward(tinker_data(), "cross_entropy").result()
    weighted = theirs.forward(tinker_data("weights"), "cross_entropy").result()
    for one, other in zip(bare.loss_fn_outputs, weighted.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"].to_numpy(), other["logprobs"].to_numpy(), atol=1e-5)


def test_a_loss_of_ones_own_on_the_client(models):
    theirs, _ = models

    def mine(data, logprobs):
        loss = sum((p**2).sum() for p in logprobs)
        return loss, {"mine:mean": 2.0}

    output = theirs.forward_backward_custom(tinker_data(), mine).result()
    norm = norm_of(theirs)
    forward = theirs.forward(tinker_data(), "cross_entropy").result()
    logprobs = [torch.tensor(each["logprobs"].data) for each in forward.loss_fn_outputs]
    assert output.metrics["loss:sum"] == pytest.approx(sum((p**2).sum().item() for p in logprobs), rel=1e-5)
    assert output.metrics["mine:mean"] == 2.0
    assert "surrogate_loss:sum" in output.metrics
    linear = tinker_data()
    for datum, p in zip(linear, logprobs, strict=True):
        datum.loss_fn_inputs["weights"] = tinker.TensorData.from_torch(-2 * p)
    theirs.forward_backward(linear, "cross_entropy").result()
    assert norm == pytest.approx(norm_of(theirs), rel=1e-5)


def clipped(logprobs, old_logprobs, advantages, beta):
    ratio = torch.exp(logprobs - old_logprobs)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = torch.expm1(old_logprobs - logprobs) - (old_logprobs - logprobs)
    return (beta * kl - surrogate).mean(), {"custom/ratio:mean": ratio.mean(), "custom/tokens:sum": (ratio > 0).sum()}


def custom_data():
    data = tinker_data(*POLICY_INPUTS)
    for index, datum in enumerate(data):
        datum.loss_fn_inputs["old_logprobs"] = datum.loss_fn_inputs.pop("logprobs")
        datum.loss_fn_inputs["beta"] = tinker.TensorData(data=[0.1 * (index + 1)], dtype="float32", shape=[])
    return data


RANKS = {"logprobs": 1, "old_logprobs": 1, "advantages": 1, "beta": 0}


def test_a_loss_of_ones_own_on_the_server_is_that_on_the_client(service, models):
    theirs, _ = models
    handle = service.create_custom_loss(clipped, RANKS).result()
    assert handle.loss_id is not None
    there = theirs.forward_backward_custom(custom_data(), handle).result()
    norm = norm_of(theirs)
    by_client = dataclasses.replace(handle, loss_id=None)
    here = theirs.forward_backward_custom(custom_data(), by_client).result()
    for name in ("loss:sum", "custom/ratio:mean", "custom/tokens:sum"):
        assert there.metrics[name] == pytest.approx(here.metrics[name], rel=1e-5)
    assert norm > 0
    assert norm == pytest.approx(norm_of(theirs), rel=1e-5)
    assert "surrogate_loss:sum" not in there.metrics
    for one, other in zip(there.loss_fn_outputs, here.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"].to_numpy(), other["logprobs"].to_numpy(), atol=1e-5)


def test_what_is_wrong_with_a_loss_of_ones_own_is_the_users_mistake(service, models):
    theirs, _ = models
    with pytest.raises(tinker.RequestFailedError, match=r"repeat_interleave.*not among the operations") as caught:
        service.create_custom_loss(lambda logprobs: (logprobs.repeat_interleave(2).sum(), {}), {"logprobs": 1}).result()
    assert caught.value.category is types.RequestErrorCategory.User
    wrong = service.create_custom_loss(lambda logprobs: (logprobs.view(3, 5, 7).sum(), {}), {"logprobs": 1}).result()
    with pytest.raises(tinker.RequestFailedError, match=r"node 'view', view: .*invalid") as caught:
        theirs.forward_backward_custom(tinker_data(), wrong).result()
    assert caught.value.category is types.RequestErrorCategory.User
    with pytest.raises(tinker.RequestFailedError, match="loss_id"):
        theirs.forward_backward(tinker_data(), "custom", {"loss_id": "nobody's"}).result()
    with contextlib.suppress(tinker.RequestFailedError):
        norm_of(theirs)


def test_mistakes_name_what_is_wrong(models):
    theirs, _ = models
    for loss_fn, data, config, says in (
        ("ppo", tinker_data("logprobs"), None, r"data\[0\]\.loss_fn_inputs.*advantages"),
        ("ppo", tinker_data(*POLICY_INPUTS), {"clip_low_threshold": 2.0}, r"loss_fn_config\.clip_low_threshold"),
        ("dro", tinker_data(*POLICY_INPUTS), {"beta": "much"}, r"loss_fn_config\.beta"),
    ):
        with pytest.raises(tinker.RequestFailedError, match=says) as caught:
            theirs.forward_backward(data, loss_fn, config).result()
        assert caught.value.category is types.RequestErrorCategory.User
