"""Losses and gradients against a plain peft + torch loop on the same model, in double precision."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from farstep_model.embedded import model_dir
from farstep_proto.errors import ModelError
from farstep_proto.loss_table import BOUND_INPUTS, LOSS_TABLE
from farstep_worker.gradients import run_pass
from farstep_worker.submission import Example, Pass

FORMULAS = {
    "cross_entropy": lambda p, q, adv: -p,
    "importance_sampling": lambda p, q, adv: -torch.exp(p - q) * adv,
    "ppo": lambda p, q, adv, low=0.8, high=1.2: -torch.min(torch.exp(p - q) * adv, _clip(p - q, low, high) * adv),
    "cispo": lambda p, q, adv, low=0.0, high=4.0: -_clip(p - q, low, high).detach() * adv * p,
    "stable_reinforce": lambda p, q, adv, alpha=1.0: -(torch.exp(p - q).clip(max=1) ** alpha).detach() * adv * p,
    "dro": lambda p, q, adv: -(p * adv - 0.5 * 0.05 * (p - q) ** 2),
    "dppo": lambda p, q, adv: -torch.exp(p - q) * adv * _dppo_keep(p, q, adv),
}
PREFERENCES = {
    "dpo": lambda delta, beta, s: -(1 - s) * F.logsigmoid(beta * delta) - s * F.logsigmoid(-beta * delta),
    "ipo": lambda delta, beta, s: (1 - s) * (delta - 1 / (2 * beta)) ** 2 + s * (delta + 1 / (2 * beta)) ** 2,
}
# Bounds that clip some of the sequences of `make_pass`, and not others.
SETTINGS = {"gspo": {"clip_low_threshold": 0.2, "clip_high_threshold": 0.5}}


def _clip(log_ratio, low, high):
    """By the token, where the bounds are."""
    low, high = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    return torch.minimum(torch.maximum(torch.exp(log_ratio), low), high)


def _dppo_keep(p, q, adv):
    threshold = LOSS_TABLE["dppo"].defaults["divergence_threshold"]
    leaves = torch.sign(adv) * (p - q) > 0
    return ~(leaves & (torch.abs(torch.exp(p) - torch.exp(q)) > threshold)).detach()


def plain_peft(adapter):
    """The same model and weights in transformers and peft, in double precision."""
    model = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float64)
    names = sorted({name.rpartition(".lora_")[0].removeprefix("base_model.model.") for name in adapter.state_dict()})
    config = LoraConfig(r=adapter.spec.rank, lora_alpha=adapter.spec.alpha, target_modules=names)
    peft_model = get_peft_model(model, config)
    if adapter.value_head is not None:
        head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.float64)
        head.load_state_dict({"weight": adapter.value_head.weight, "bias": adapter.value_head.bias})
        peft_model.v_head = torch.nn.ModuleDict({"summary": head})
    set_peft_model_state_dict(peft_model, {key: value.double() for key, value in adapter.state_dict().items()})
    return peft_model.eval()


def reference(adapter, call):
    """Loss sum, log-probabilities or values by datum, and gradients by name: one datum at a time, without padding."""
    model = plain_peft(adapter)
    data, all_logprobs = [], []
    for example in call.examples:
        output = model(torch.from_numpy(example.tokens.astype(np.int64))[None], output_hidden_states=True)
        targets = torch.from_numpy(example.inputs["target_tokens"])
        asked = targets != -100
        flat = targets.reshape(len(targets), -1).clamp_min(0)
        p = torch.log_softmax(output.logits[0], -1).gather(-1, flat).reshape(targets.shape)
        if call.loss_fn == "value":
            p = model.v_head.summary(output.hidden_states[-1][0])[:, 0]
        p = torch.where(asked, p, 0.0)
        given = {key: torch.from_numpy(array).double() for key, array in example.inputs.items()}
        weights = given.get("weights", torch.ones_like(p)) * asked
        data.append((p, weights, given))
        all_logprobs.append(p.detach().numpy())
    loss_sum = expected_loss(call, data)
    loss_sum.backward()
    gradients = {
        name.replace(".default.", "."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return loss_sum.item(), all_logprobs, gradients


def expected_loss(call, data):
    settings = {**LOSS_TABLE[call.loss_fn].defaults, **call.config}
    if call.loss_fn in PREFERENCES:
        sums = [(weights * (p - given["ref_logprobs"])).sum() for p, weights, given in data]
        deltas = [chosen - rejected for chosen, rejected in zip(sums[::2], sums[1::2], strict=True)]
        formula = PREFERENCES[call.loss_fn]
        total = sum(formula(delta, settings["beta"], settings["label_smoothing"]) for delta in deltas)
    else:
        total = 0.0
        for p, weights, given in data:
            if call.loss_fn == "gspo":
                per_token = _gspo(p, weights, given, settings)
            elif call.loss_fn == "value":
                per_token = settings["coef"] * _value(p, given, settings["clip"])
            else:
                special = {"low": "clip_low_threshold", "high": "clip_high_threshold", "alpha": "alpha"}
                bounds = {short: given.get(key, call.config.get(key)) for short, key in special.items()}
                bounds = {short: bound for short, bound in bounds.items() if bound is not None}
                per_token = FORMULAS[call.loss_fn](p, given.get("logprobs"), given.get("advantages"), **bounds)
            if settings.get("kl_coef"):
                log_ratio = given["logprobs" if call.loss_fn == "stable_reinforce" else "ref_logprobs"] - p
                per_token = per_token + settings["kl_coef"] * (log_ratio.exp() - log_ratio - 1)
            total = total + (weights * per_token).sum()
    return total / settings["normalizer"]


def _gspo(p, weights, given, settings):
    counted = (weights != 0) & (given.get("sequence_ratio_mask", torch.ones_like(p)) != 0)
    if not counted.any():
        return 0 * p
    sequence_ratio = (p - given["logprobs"])[counted].mean().exp().item()
    ratio = sequence_ratio * torch.exp(p - p.detach())
    bounds = [given.get(key, settings[key]) for key in ("clip_low_threshold", "clip_high_threshold")]
    return -torch.min(ratio * given["advantages"], _clip(ratio.log(), *bounds) * given["advantages"])


def _value(v, given, clip):
    """By token, as PPO2 has it: the old value moved by the clipped difference."""
    moved = given["values"] + (v - given["values"]).clip(-clip, clip)
    return 0.5 * torch.max((v - given["returns"]) ** 2, (moved - given["returns"]) ** 2)


def distance(found, expected):
    """Relative, in the norm of all parameters together."""
    difference = torch.sqrt(sum(((a.double() - b) ** 2).sum() for a, b in zip(found, expected, strict=True)))
    return (difference / torch.sqrt(sum((b**2).sum() for b in expected))).item()


def check_against_reference(adapter, call, results):
    loss_sum, logprobs, gradients = reference(adapter, call)
    expected = [gradients[name] for name in adapter.names()]
    found = [torch.stack(parts).sum(0) for parts in zip(*(result.gradients for result in results), strict=True)]
    assert sum(result.loss_sum for result in results) == pytest.approx(loss_sum, rel=1e-5)
    assert distance(found, expected) <= 1e-5
    assert torch.stack([g.norm() for g in found]).min() > 0, "each must be there, or the comparison says little of it"
    outputs = [array for result in results for array in result.outputs]
    for output, wanted in zip(outputs, logprobs, strict=True):
        assert output.shape == wanted.shape
        np.testing.assert_allclose(output, wanted, atol=2e-5)


@pytest.mark.parametrize("loss_fn", sorted(LOSS_TABLE))
def test_every_loss_agrees_with_plain_peft(make_run, make_pass, loss_fn):
    adapter = make_run(warm=True, value_head=loss_fn == "value").adapter
    call = make_pass(loss_fn, config=SETTINGS.get(loss_fn))
    result = run_pass(adapter, call, token_budget=24, dropout_seed=0)
    check_against_reference(adapter, call, [result])
    assert result.metrics["loss:sum"] == pytest.approx(result.loss_sum, rel=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "config"),
    [
        ("cross_entropy", {"normalizer": 7.0}),
        ("ppo", {"normalizer": 0.25, "kl_coef": 0.3}),
        ("importance_sampling", {"kl_coef": 1.5}),
        ("dro", {"kl_coef": 0.1}),
        ("gspo", {"kl_coef": 0.3, **SETTINGS["gspo"]}),
        ("stable_reinforce", {"alpha": 0.0}),
        ("stable_reinforce", {"alpha": 0.5, "kl_coef": 0.02, "normalizer": 2.0}),
        ("cispo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}),
        ("dpo", {"beta": 0.05, "label_smoothing": 0.2, "normalizer": 3.0}),
        ("ipo", {"beta": 0.05, "label_smoothing": 0.2}),
        ("value", {"clip": 0.2, "coef": 3.0, "normalizer": 5.0}),
        ("value", {"clip": 0.0}),
    ],
)
def test_common_settings_agree_with_plain_torch(make_run, make_pass, loss_fn, config):
    adapter = make_run(warm=True, value_head=loss_fn == "value").adapter
    call = make_pass(loss_fn, config=config)
    check_against_reference(adapter, call, [run_pass(adapter, call, token_budget=24, dropout_seed=0)])


@pytest.mark.parametrize("loss_fn", ["dpo", "ipo", "gspo"])
@pytest.mark.parametrize("token_budget", [1, 20, 40, 1000])
def test_pairs_and_sequences_stay_whole_however_they_are_batched(make_run, make_pass, loss_fn, token_budget):
    adapter = make_run(warm=True).adapter
    call = make_pass(loss_fn, lengths=(3, 14, 9, 2, 6, 6, 20, 4), config=SETTINGS.get(loss_fn))
    result = run_pass(adapter, call, token_budget=token_budget, dropout_seed=0)
    check_against_reference(adapter, call, [result])
    whole = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert result.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-6)
    if loss_fn != "gspo":
        assert result.metrics["pairs:sum"] == 4


@pytest.mark.parametrize("first_has_them", [True, False])
def test_data_with_and_without_optional_inputs_share_a_batch(make_run, make_pass, first_has_them):
    adapter = make_run(warm=True).adapter
    call = make_pass("gspo", config=SETTINGS["gspo"])
    for example in call.examples[first_has_them::2]:
        for key in ("weights", "sequence_ratio_mask", "ref_logprobs"):
            del example.inputs[key]
    check_against_reference(adapter, call, [run_pass(adapter, call, token_budget=1000, dropout_seed=0)])


@pytest.mark.parametrize("loss_fn", ["ppo", "cispo", "gspo"])
@pytest.mark.parametrize("keys", [("clip_low_threshold",), ("clip_high_threshold",), BOUND_INPUTS])
@pytest.mark.parametrize("of_all", [True, False])
def test_bounds_by_the_token(make_run, make_pass, loss_fn, keys, of_all):
    adapter = make_run(warm=True).adapter
    config = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    call = make_pass(loss_fn, lengths=(16, 12, 3, 16), config=config)
    now = run_pass(adapter, dataclasses.replace(call, backward=False), token_budget=1000, dropout_seed=0).outputs
    rng = np.random.default_rng(3)
    for index, example in enumerate(call.examples):  # ratios about 0.85 and 1.15, whole sequences of them
        moved = rng.normal(-0.15 if index // 2 else 0.15, 0.1, len(example.tokens))
        example.inputs["logprobs"][:] = now[index] - moved
    without = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    ranges = {"clip_low_threshold": (0.9, 1.0), "clip_high_threshold": (1.0, 1.1)}
    for example in call.examples[:: 1 if of_all else 3]:
        for key in keys:
            example.inputs[key] = rng.uniform(*ranges[key], len(example.tokens)).astype(np.float32)
    result = run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    check_against_reference(adapter, call, [result])
    assert result.metrics["clip_fraction:mean"] > without.metrics["clip_fraction:mean"]


def test_calls_of_some_pairs_add_up_to_the_whole(make_run, make_pass):
    adapter = make_run(warm=True).adapter
    call = make_pass("dpo", lengths=(4, 17, 8, 2, 11, 5))
    parts = [dataclasses.replace(call, examples=call.examples[a:b]) for a, b in ((0, 2), (2, 6))]
    check_against_reference(adapter, call, [run_pass(adapter, p, token_budget=64, dropout_seed=0) for p in parts])


def test_split_calls_add_up_to_the_whole(make_run, make_pass):
    adapter = make_run(warm=True).adapter
    call = make_pass("importance_sampling", lengths=(4, 17, 8, 2, 11))
    parts = [dataclasses.replace(call, examples=call.examples[a:b]) for a, b in ((0, 2), (2, 3), (3, 5))]
    check_against_reference(adapter, call, [run_pass(adapter, p, token_budget=64, dropout_seed=0) for p in parts])


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_the_output_layer_can_be_trained_too(make_run, make_pass):
    adapter = make_run(warm=True, target_modules=("lm_head", "q_proj"), train_unembed=True).adapter
    call = make_pass()
    check_against_reference(adapter, call, [run_pass(adapter, call, token_budget=64, dropout_seed=0)])


def test_several_candidates_a_position(make_run):
    adapter = make_run(warm=True).adapter
    rng = np.random.default_rng(5)
    examples = []
    for length, k in ((6, 3), (4, 1), (9, 3), (5, 0)):  # 0: plain [T] in the same batch
        shape = (length, k) if k else (length,)
        targets = rng.integers(3, 300, shape)
        targets[0] = -100
        targets.flat[-1] = -100
        weights = rng.uniform(0, 1, shape).astype(np.float32)
        tokens = rng.integers(3, 300, length).astype(np.int32)
        examples.append(Example(tokens, {"target_tokens": targets, "weights": weights}))
    call = Pass("cross_entropy", {}, tuple(examples), backward=True)
    check_against_reference(adapter, call, [run_pass(adapter, call, token_budget=32, dropout_seed=0)])


@pytest.mark.parametrize("token_budget", [1, 16, 1000])
def test_batching_changes_nothing_beyond_rounding(make_run, make_pass, token_budget):
    adapter = make_run(warm=True).adapter
    call = make_pass("ppo", lengths=(5, 12, 3, 9, 12, 1))
    one, other = (run_pass(adapter, call, token_budget=b, dropout_seed=0) for b in (40, token_budget))
    assert one.loss_sum == pytest.approx(other.loss_sum, rel=1e-5)
    assert distance(one.gradients, [g.double() for g in other.gradients]) <= 1e-5
    assert one.num_active == other.num_active
    for a, b in zip(one.outputs, other.outputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


def test_a_forward_pass_has_no_gradients_and_the_same_numbers(make_run, make_pass):
    adapter = make_run(warm=True).adapter
    call = make_pass("cispo")
    backward = run_pass(adapter, call, token_budget=64, dropout_seed=0)
    forward = run_pass(adapter, dataclasses.replace(call, backward=False), token_budget=64, dropout_seed=0)
    assert forward.gradients is None
    assert forward.loss_sum == backward.loss_sum
    assert forward.metrics == backward.metrics


def test_targets_without_weight_get_their_logprob_and_no_gradient(make_run, make_pass):
    adapter = make_run(warm=True).adapter
    call = make_pass(lengths=(7, 4))
    unweighted = tuple(
        Example(e.tokens, {**e.inputs, "weights": np.zeros(len(e.tokens), dtype=np.float32)}) for e in call.examples
    )
    result = run_pass(adapter, dataclasses.replace(call, examples=unweighted), token_budget=64, dropout_seed=0)
    assert result.num_active == 0
    assert result.loss_sum == 0
    assert all(not gradient.any() for gradient in result.gradients)
    full = run_pass(adapter, call, token_budget=64, dropout_seed=0)
    for a, b in zip(result.outputs, full.outputs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert a[-1] == 0
        assert (a[:-1] < 0).all()


def test_dropout_is_by_its_seed_and_in_the_backward_pass_only(make_run, make_pass):
    adapter = make_run(warm=True, dropout=0.5).adapter
    call = make_pass()
    losses = [run_pass(adapter, call, token_budget=64, dropout_seed=seed).loss_sum for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    still = dataclasses.replace(call, backward=False)
    assert len({run_pass(adapter, still, token_budget=64, dropout_seed=seed).loss_sum for seed in (1, 2)}) == 1


def test_a_loss_that_is_not_finite_names_its_datum(make_run, make_pass):
    adapter = make_run().adapter
    call = make_pass("importance_sampling")
    call.examples[2].inputs["logprobs"][0] = -1e30
    call.examples[2].inputs["advantages"][0] = 1.0
    with pytest.raises(ModelError) as caught:
        run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert caught.value.error_class == "NonFiniteError"
    assert caught.value.field == "data[2]"


def test_a_pair_whose_loss_is_not_finite_is_named_by_its_first_datum(make_run, make_pass):
    adapter = make_run().adapter
    call = make_pass("ipo")
    call.examples[3].inputs["ref_logprobs"][:] = -1e30
    call.examples[3].inputs["weights"][0] = 1.0
    with pytest.raises(ModelError) as caught:
        run_pass(adapter, call, token_budget=1000, dropout_seed=0)
    assert (caught.value.error_class, caught.value.field) == ("NonFiniteError", "data[2]")
