"""Losses over sequences and pairs, losses of the user's own, and reference log-probabilities, through the real SDK."""

import asyncio
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import farstep
from farstep import AdamParams, Datum, InvalidInputError, RemoteOpError
from tests.support.processes import KEY, running

PROMPT = [1, 40, 41, 42]
CHOSEN, REJECTED = [50, 51, 52, 53, 2], [60, 61, 2]
ADAM = AdamParams(learning_rate=1e-2)


def datum(answer, **inputs):
    return Datum.from_prompt_completion(PROMPT, answer, **inputs)


def answers(num_pairs):
    return [[token + shift for token in answer] for shift in range(num_pairs) for answer in (CHOSEN, REJECTED)]


def arrays_of(output):
    return [fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def with_reference(data, output):
    return [
        Datum(datum.model_input, {**datum.loss_fn_inputs, "ref_logprobs": array})
        for datum, array in zip(data, arrays_of(output), strict=True)
    ]


def train(client, data, steps=2):
    for _ in range(steps):
        client.forward_backward(data)
        client.optim_step(ADAM).result()


@pytest.fixture
def make(service):
    return lambda seed=1: service.create_lora_training_client("farstep/tiny", rank=4, seed=seed)


# Reference log-probabilities


def test_base_is_the_model_without_the_adapter_and_start_what_the_run_began_with(service, make):
    data = [datum(CHOSEN), datum(REJECTED)]
    trainer = make()
    plain = arrays_of(trainer.forward(data).result())
    train(trainer, data)
    assert_equal(arrays_of(trainer.forward(data, adapter="base").result()), plain)
    assert_equal(arrays_of(trainer.forward(data, adapter="start").result()), plain)
    trained = arrays_of(trainer.forward(data).result())
    assert not np.array_equal(trained[0], plain[0])

    copy = service.create_training_client_from_state(trainer.save_state("trained").result().path)
    train(copy, data)
    assert_equal(arrays_of(copy.forward(data, adapter="start").result()), trained)
    assert_equal(arrays_of(copy.forward(data, adapter="base").result()), plain)
    resumed = service.create_training_client_from_state_with_optimizer(copy.save_state("more").result().path)
    assert_equal(arrays_of(resumed.forward(data, adapter="start").result()), trained)
    copy.reset(4).result()
    assert_equal(arrays_of(copy.forward(data, adapter="start").result()), plain)


def test_the_weights_are_the_models_own(make):
    """Against transformers on the same files."""
    from transformers import AutoModelForCausalLM

    from farstep_model.embedded import model_dir

    trainer = make()
    train(trainer, [datum(CHOSEN)])
    (found,) = arrays_of(trainer.forward([datum(CHOSEN)], adapter="base").result())
    tokens = torch.tensor([PROMPT + CHOSEN])
    model = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    np.testing.assert_allclose(found[3:], logprobs[3:], atol=1e-5)


def test_looking_at_other_weights_leaves_the_buffer_alone(make):
    norms = []
    for looks in (False, True):
        trainer = make()
        trainer.forward_backward([datum(CHOSEN)])
        if looks:
            trainer.forward([datum(REJECTED)], adapter="base")
            trainer.forward([datum(REJECTED)], adapter="start")
        norms.append(trainer.optim_step().result().metrics["grad_norm"])
    assert norms[0] == norms[1]


async def test_async_takes_the_same_argument(trainer):
    with pytest.raises(InvalidInputError, match="no adapter 'reference'") as caught:
        await trainer.forward_async([datum(CHOSEN)], adapter="reference")
    assert caught.value.field == "adapter"
    output = await (await trainer.forward_async([datum(CHOSEN)], adapter="base"))
    assert output.loss > 0


# Pairs


def test_dpo_begins_at_ln_2_and_learns_to_prefer(trainer):
    plain = [datum(answer) for answer in answers(4)]
    data = with_reference(plain, trainer.forward(plain, adapter="start").result())
    first = trainer.forward_backward(data, "dpo").result()
    assert first.loss == pytest.approx(math.log(2), abs=1e-5)
    assert first.metrics["loss:sum"] == pytest.approx(4 * math.log(2), abs=1e-4)
    for _ in range(6):
        trainer.optim_step(ADAM)
        last = trainer.forward_backward(data, "dpo").result()
    assert last.loss < 0.9 * math.log(2)
    assert last.metrics["accuracy:mean"] == 1
    assert last.metrics["margin:mean"] > 0.2
    assert last.metrics["chosen_reward:mean"] > last.metrics["rejected_reward:mean"]
    assert last.metrics["pairs:sum"] == 4


@pytest.mark.parametrize("loss_fn", ["dpo", "ipo"])
def test_a_pair_loss_is_that_of_plain_torch(trainer, loss_fn):
    plain = [datum(answer) for answer in answers(3)]
    reference = trainer.forward(plain).result()
    train(trainer, plain[::2])
    config = {"beta": 0.3, "label_smoothing": 0.1}
    output = trainer.forward(with_reference(plain, reference), loss_fn, config).result()
    now, then = ([torch.tensor(a).double() for a in arrays_of(o)] for o in (output, reference))
    sums = torch.stack([(p - q).sum() for p, q in zip(now, then, strict=True)])
    delta = sums[::2] - sums[1::2]
    if loss_fn == "dpo":
        expected = -0.9 * F.logsigmoid(0.3 * delta) - 0.1 * F.logsigmoid(-0.3 * delta)
    else:
        expected = 0.9 * (delta - 1 / 0.6) ** 2 + 0.1 * (delta + 1 / 0.6) ** 2
    assert output.metrics["loss:sum"] == pytest.approx(expected.sum().item(), rel=1e-5)
    assert output.loss == pytest.approx(expected.mean().item(), rel=1e-5)


def test_pairs_stay_together_in_parts_and_micro_batches(make, tmp_path, monkeypatch):
    """The server takes few bytes a request and few tokens at a time, and gives what one big pass gives."""
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    plain = [datum(answer) for answer in answers(15)]
    big = make(seed=5)
    data = with_reference(plain, big.forward(plain).result())
    limits = ("--max-request-bytes", 1500, "--max-datum-bytes", 1500, "--token-budget", 20)
    pair = [datum(list(range(3, 63)), ref_logprobs=-1.0)] * 2
    with (
        running("farstep_worker", "--model", "farstep/tiny", "--store", tmp_path, *limits) as server,
        farstep.ServiceClient.local(trainer_url=server.url, sampler_url=server.url) as service,
    ):
        small = service.create_lora_training_client("farstep/tiny", rank=4, seed=5)
        for step in range(2):
            outputs = [client.forward_backward(data, "dpo").result() for client in (big, small)]
            norms = [client.optim_step(ADAM).result().metrics["grad_norm"] for client in (big, small)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
            accuracies = [output.metrics.pop("accuracy:mean") for output in outputs]
            assert step == 0 or accuracies[0] == accuracies[1]  # before the first step its margins are rounding errors
            assert outputs[0].metrics == pytest.approx(outputs[1].metrics, rel=1e-3, abs=1e-4)
        outputs = [client.forward_backward_custom(data, own_cross_entropy).result() for client in (big, small)]
        assert outputs[0].loss == pytest.approx(outputs[1].loss, rel=1e-4)
        assert len(outputs[1].loss_fn_outputs) == 30
        with pytest.raises(InvalidInputError, match="the pair takes") as caught:
            small.forward([*data, *pair], "dpo")
        assert caught.value.field == "data[30]"


@pytest.mark.parametrize(
    ("loss_fn", "config", "data", "field"),
    [
        ("dpo", {}, [datum(CHOSEN, ref_logprobs=-1.0)] * 3, "data"),
        ("dpo", {}, [datum(CHOSEN)] * 2, "data[0].loss_fn_inputs"),
        ("ipo", {}, [datum(CHOSEN, ref_logprobs=-1.0), datum(CHOSEN, ref_logprobs=-1.0, weights=0.0)],
         "data[1].loss_fn_inputs.target_tokens"),
        ("ppo", {"kl_coef": 0.1}, [datum(CHOSEN, logprobs=-1.0, advantages=1.0)], "data[0].loss_fn_inputs"),
        ("cross_entropy", {"normalizer": 0}, [datum(CHOSEN)], "loss_fn_config.normalizer"),
        ("cross_entropy", {"kl_coef": 0.1}, [datum(CHOSEN)], "loss_fn_config.kl_coef"),
        ("gspo", {}, [datum(CHOSEN, logprobs=-1.0, advantages=1.0, sequence_ratio_mask=0.5)],
         "data[0].loss_fn_inputs.sequence_ratio_mask"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_at_the_call(trainer, loss_fn, config, data, field):
    with pytest.raises(InvalidInputError) as caught:
        trainer.forward_backward(data, loss_fn, config)
    assert caught.value.field == field
    assert trainer.forward([datum(CHOSEN)]).result().loss > 0


# Sequences, normalizer, distance to a reference


def test_gspo_and_its_mask(trainer):
    plain = [datum(CHOSEN), datum(REJECTED)]
    before = arrays_of(trainer.forward(plain).result())
    train(trainer, plain)
    data = [
        Datum(d.model_input, {**d.loss_fn_inputs, "logprobs": q, "advantages": np.where(q != 0, 0.5 - i, 0)})
        for i, (d, q) in enumerate(zip(plain, before, strict=True))
    ]
    output = trainer.forward_backward(data, "gspo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.1}).result()
    ratios = [math.exp((p - q)[q != 0].mean()) for p, q in zip(arrays_of(output), before, strict=True)]
    assert min(ratios) > 1.1  # both answers became likelier: the rewarded one is clipped, the punished one is not
    expected = -5 * 0.5 * 1.1 + 3 * 0.5 * ratios[1]
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    assert output.metrics["clip_fraction:mean"] == pytest.approx(5 / 8)
    mask = np.zeros_like(before[1])
    mask[-1] = 1
    masked = [data[0], Datum(data[1].model_input, {**data[1].loss_fn_inputs, "sequence_ratio_mask": mask})]
    output = trainer.forward([masked[1]], "gspo", {"clip_high_threshold": 100}).result()
    last = math.exp(arrays_of(output)[0][-1] - before[1][-1])
    assert output.metrics["sequence_ratio:mean"] == pytest.approx(last, rel=1e-4)
    with pytest.raises(InvalidInputError, match="unknown input"):
        trainer.forward([masked[1]], "ppo")


def test_the_normalizer_divides_the_gradient_and_the_sum(make):
    found = []
    for normalizer in (1.0, 8.0):
        trainer = make()
        output = trainer.forward_backward([datum(CHOSEN)], "cross_entropy", {"normalizer": normalizer}).result()
        norm = trainer.optim_step().result().metrics["grad_norm"]
        found.append((output.loss, output.metrics["loss:sum"] * normalizer, norm * normalizer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_distance_to_the_reference_holds_the_policy_back(make):
    """The same policy gradient, pulled to the reference by more or less."""
    distances = []
    for kl_coef in (0.0, 5.0):
        trainer = make()
        plain = [datum(CHOSEN)]
        q = arrays_of(trainer.forward(plain).result())[0]
        inputs = {**plain[0].loss_fn_inputs, "logprobs": q, "ref_logprobs": q, "advantages": np.ones_like(q)}
        for _ in range(5):
            data = [Datum(plain[0].model_input, inputs)]
            output = trainer.forward_backward(data, "importance_sampling", {"kl_coef": kl_coef}).result()
            trainer.optim_step(AdamParams(learning_rate=3e-3)).result()
        p = arrays_of(output)[0]
        d = (q - p)[q != 0].astype(np.float64)
        k3 = np.exp(d) - d - 1
        assert output.metrics["kl_ref:mean"] == pytest.approx(k3.mean(), rel=1e-3, abs=1e-7)
        ratio = np.exp(-d)
        assert output.metrics["loss:sum"] == pytest.approx(-ratio.sum() + kl_coef * k3.sum(), rel=1e-4)
        distances.append(k3.mean())
    assert distances[1] < 0.5 * distances[0]


# Losses of the user's own


def own_cross_entropy(data, logprobs):
    loss = -sum(p.sum() for p in logprobs)
    return loss, {"mine:sum": loss.item()}


def own_dpo(data, logprobs):
    sums = torch.stack(
        [
            (p - d.loss_fn_inputs["ref_logprobs"].to_torch())[
                d.loss_fn_inputs["target_tokens"].to_torch() != -100
            ].sum()
            for d, p in zip(data, logprobs, strict=True)
        ]
    )
    margins = sums[::2] - sums[1::2]
    return -F.logsigmoid(0.1 * margins).sum(), {"margin": margins.mean() * 0.1}


def compare(named, custom, data, loss_fn, own):
    """Three steps with the named loss and with the user's own: the same numbers."""
    for _ in range(3):
        one, other = named.forward_backward(data, loss_fn).result(), custom.forward_backward_custom(data, own).result()
        assert other.metrics["surrogate_loss:sum"] != 0
        norms = [client.optim_step(ADAM).result().metrics["grad_norm"] for client in (named, custom)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        assert other.loss == pytest.approx(one.metrics["loss:sum"], rel=1e-4)
        for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)
    return other


def test_ones_own_cross_entropy_is_the_named_one(make):
    output = compare(make(), make(), [datum(a) for a in answers(2)], "cross_entropy", own_cross_entropy)
    assert output.metrics["mine:sum"] == pytest.approx(output.loss)
    assert output.metrics.keys() == {"mine:sum", "surrogate_loss:sum"}


def test_ones_own_preference_loss_is_the_named_one(make):
    named = make()
    plain = [datum(answer) for answer in answers(3)]
    data = with_reference(plain, named.forward(plain).result())
    output = compare(named, make(), data, "dpo", own_dpo)
    assert output.metrics["margin"] > 0


def test_gradients_of_a_loss_of_ones_own_add_to_the_buffer(make):
    mixed, whole = make(), make()
    data = [datum(a) for a in answers(2)]
    mixed.forward_backward(data[:2])
    mixed.forward_backward_custom(data[2:], own_cross_entropy)
    whole.forward_backward(data)
    norms = [client.optim_step().result().metrics["grad_norm"] for client in (mixed, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_weights_of_both_signs_and_several_candidates(make):
    """A gradient of any sign comes through; ignored targets have none."""
    targets = np.array([[40, 50], [41, 51], [42, -100]])
    data = [Datum(farstep.ModelInput.from_ints([1, 40, 41]), {"target_tokens": targets, "note": [1.0, 2.0]})]
    coefficients = torch.tensor([[0.7, -0.3], [-2.0, 0.4], [1.0, 5.0]])

    def own(given, logprobs):
        assert given[0] is data[0]
        assert given[0].loss_fn_inputs["note"].tolist() == [1, 2]
        assert logprobs[0].shape == (3, 2)
        assert logprobs[0].is_leaf
        assert logprobs[0][2, 1] == 0
        return (coefficients * logprobs[0]).sum(), {}

    custom, named = make(), make()
    custom.forward_backward_custom(data, own).result()
    inputs = {"target_tokens": targets, "weights": -coefficients.numpy()}
    named.forward_backward([Datum(data[0].model_input, inputs)])
    for client in (custom, named):
        client.optim_step(ADAM)
    found = [
        client.forward([Datum(data[0].model_input, {"target_tokens": targets})]).result() for client in (custom, named)
    ]
    np.testing.assert_allclose(*(arrays_of(output)[0] for output in found), atol=1e-6)


def test_a_failure_of_the_users_code_leaves_the_client_usable(trainer):
    def broken(data, logprobs):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer.forward_backward_custom([datum(CHOSEN)], broken)
    with pytest.raises(RemoteOpError, match="no gradient"):
        trainer.optim_step().result(timeout=20)
    first = trainer.forward([datum(CHOSEN)])
    output = trainer.forward_backward_custom([datum(CHOSEN)], own_cross_entropy)
    assert [int(f.operation_id.rpartition(":")[2]) for f in (first, output)] == [4, 6]  # 5 was its forward pass
    assert trainer.optim_step().result().metrics["step"] == 1


async def test_ones_own_loss_async_does_not_hold_the_loop(trainer):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    def slow(data, logprobs):
        import time

        time.sleep(0.3)
        return own_cross_entropy(data, logprobs)

    ticking = asyncio.create_task(tick())
    custom = asyncio.create_task(trainer.forward_backward_custom_async([datum(CHOSEN)], slow))
    await asyncio.sleep(0.1)
    step = await trainer.optim_step_async()  # submitted meanwhile: runs after both passes
    output = await (await custom)
    assert (await step).metrics["step"] == 1
    assert output.metrics["mine:sum"] == pytest.approx(output.loss)
    assert ticks > 10
    ticking.cancel()
