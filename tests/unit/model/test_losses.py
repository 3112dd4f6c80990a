"""The losses: by hand at the clip edges, and against plain PEFT and torch over full logits, value and gradient."""

import math
from collections.abc import Callable, Mapping

import peft
import pytest
import torch
from torch import Tensor

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_model.logprobs import token_logprobs
from farstep_model.lora import LoraLayers
from farstep_model.losses import LOSSES, LossResult, compute_loss
from farstep_model.sequences import Sequences
from farstep_proto.errors import InvalidInput
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.metrics import combine_metrics, mean_loss

Load = Callable[[str], BaseModel]
Make = Callable[..., Adapter]


def tokens(p: list[float], q: list[float], advantages: list[float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Probabilities now (p) and then (q) as the inputs of a policy loss."""
    inputs = {
        "target_tokens": torch.zeros(len(p), dtype=torch.long),
        "logprobs": torch.tensor(q).log(),
        "advantages": torch.tensor(advantages),
        "returns": torch.tensor(advantages),
        "values": torch.tensor(q),
    }
    return torch.tensor(p).log().requires_grad_(), inputs


def gradient(result: LossResult, logprobs: Tensor) -> list[float]:
    return torch.autograd.grad(result.loss_sum, logprobs)[0].tolist()


LN2 = math.log(2)
OF_LOGPROBS = [name for name, spec in LOSS_TABLE.items() if spec.output == "logprobs"]
NOT_PAIRS = [name for name, spec in LOSS_TABLE.items() if spec.grouping != "pair"]


def test_every_loss_of_the_table_has_its_formula_and_no_more() -> None:
    assert LOSSES.keys() == LOSS_TABLE.keys()


# r of 0.5, 1.0 and 2.0, once rewarded and once punished.
SIX = ([0.1, 0.2, 0.4, 0.1, 0.2, 0.4], [0.2] * 6, [3.0, 3.0, 3.0, -3.0, -3.0, -3.0])


@pytest.mark.parametrize(
    ("name", "config", "loss", "gradients", "clipped"),
    [
        # −r·A: the gradient for p is the loss itself.
        ("importance_sampling", {}, 0.0, [-1.5, -3.0, -6.0, 1.5, 3.0, 6.0], None),
        # −min(r·A, clip(r)·A): 0.8 holds a punished token, 1.2 a rewarded one; the other two edges stay open.
        ("ppo", {}, -1.5 - 3.0 - 3.6 + 2.4 + 3.0 + 6.0, [-1.5, -3.0, 0.0, 0.0, 3.0, 6.0], 2 / 6),
        ("ppo", {"clip_low_threshold": 0.4, "clip_high_threshold": 3.0}, 0.0, [-1.5, -3.0, -6.0, 1.5, 3.0, 6.0], 0.0),
        # −sg(clip(r))·A·p: outside the bounds a token counts as much as at them.
        ("cispo", {"clip_low_threshold": 0.75, "clip_high_threshold": 1.5}, None,
         [-2.25, -3.0, -4.5, 2.25, 3.0, 4.5], 4 / 6),
        ("cispo", {}, None, [-1.5, -3.0, -6.0, 1.5, 3.0, 6.0], 0.0),
        # |p − q| is 0.1, 0, 0.2: only the rewarded 0.4 left the region by more than 0.15, going away.
        ("dppo", {}, -1.5 - 3.0 + 1.5 + 3.0 + 6.0, [-1.5, -3.0, 0.0, 1.5, 3.0, 6.0], 1 / 6),
        # With 0.05 the punished 0.1 did as well.
        ("dppo", {"divergence_threshold": 0.05}, -1.5 - 3.0 + 3.0 + 6.0, [-1.5, -3.0, 0.0, 0.0, 3.0, 6.0], 2 / 6),
    ],
)  # fmt: skip
def test_by_hand_at_the_edges(
    name: str, config: dict[str, float], loss: float | None, gradients: list[float], clipped: float | None
) -> None:
    logprobs, inputs = tokens(*SIX)
    result = compute_loss(name, config, logprobs=logprobs, inputs=inputs)
    if loss is not None:
        assert result.loss_sum.item() == pytest.approx(loss, abs=1e-5)
    assert gradient(result, logprobs) == pytest.approx(gradients, abs=1e-5)
    assert ("clip_fraction:mean" in result.metrics) == (clipped is not None)
    if clipped is not None:
        assert result.metrics["clip_fraction:mean"].item() == pytest.approx(clipped)


def test_cispo_value_by_hand() -> None:
    logprobs, inputs = tokens([0.4], [0.05], [2.0])
    result = compute_loss("cispo", {}, logprobs=logprobs, inputs=inputs)
    assert result.loss_sum.item() == pytest.approx(-4.0 * 2.0 * logprobs.item())


def test_dro_by_hand() -> None:
    logprobs, inputs = tokens([0.4, 0.1], [0.2, 0.2], [1.0, -1.0])
    result = compute_loss("dro", {"beta": 0.5}, logprobs=logprobs, inputs=inputs)
    ln2, (p0, p1) = 0.6931472, logprobs.tolist()
    assert result.loss_sum.item() == pytest.approx(-(p0 - 0.25 * ln2**2) - (-p1 - 0.25 * ln2**2), abs=1e-6)
    assert gradient(result, logprobs) == pytest.approx([-1 + 0.5 * ln2, 1 - 0.5 * ln2], abs=1e-6)


def test_cross_entropy_by_hand_with_candidates_and_weights() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    inputs = {
        "target_tokens": torch.tensor([[5, 6], [7, -100]]),
        "weights": torch.tensor([[0.25, 0.5], [2.0, 1.0]]),
    }
    result = compute_loss("cross_entropy", {}, logprobs=logprobs, inputs=inputs)
    assert result.loss_sum.item() == pytest.approx(0.25 + 1.0 + 6.0)
    assert torch.autograd.grad(result.loss_sum, logprobs)[0].tolist() == [[-0.25, -0.5], [-2.0, 0.0]]
    assert result.num_active == 2


@pytest.mark.parametrize("name", sorted(NOT_PAIRS))
def test_what_is_ignored_costs_nothing_whatever_stands_there(name: str) -> None:
    logprobs, inputs = tokens([0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [1.0, 1.0, 1.0])
    inputs = {key: value for key, value in inputs.items() if key in (*LOSS_TABLE[name].required, "target_tokens")}
    whole = compute_loss(name, {}, logprobs=logprobs[:1], inputs={key: value[:1] for key, value in inputs.items()})
    inputs["target_tokens"][1] = -100
    inputs["weights"] = torch.tensor([1.0, 1.0, 0.0])
    if "logprobs" in inputs:
        inputs["logprobs"][1:] = -500.0
        inputs["advantages"][1:] = 1e30
    if "returns" in inputs:
        inputs["returns"][1:] = inputs["values"][1:] = float("inf")
    odd = torch.stack([logprobs[0], torch.tensor(float("nan")), torch.tensor(-float("inf"))]).detach().requires_grad_()
    result = compute_loss(name, {}, logprobs=odd, inputs=inputs, entropy_N=torch.tensor([0.5, 9.0, 9.0]))
    assert result.num_active == 1
    assert result.loss_sum.item() == whole.loss_sum.item()
    assert gradient(result, odd)[1:] == [0.0, 0.0]
    assert result.metrics["entropy:mean"].item() == 0.5
    for key, value in whole.metrics.items():
        assert result.metrics[key].item() == value.item()


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 0.0]])
def test_whoever_knows_how_many_count_gets_the_same(weights: list[float]) -> None:
    logprobs, inputs = tokens([0.3, 0.1], [0.2, 0.2], [1.0, 2.0])
    inputs["weights"] = torch.tensor(weights)
    settings = {"logprobs": logprobs, "inputs": inputs, "entropy_N": torch.tensor([0.5, 9.0])}
    counted = compute_loss("ppo", {}, **settings)
    known = compute_loss("ppo", {}, **settings, num_active=counted.num_active)
    assert known.num_active == counted.num_active
    assert {key: value.item() for key, value in known.metrics.items()} == {
        key: value.item() for key, value in counted.metrics.items()
    }


def test_weights_scale_policy_losses() -> None:
    logprobs, inputs = tokens([0.3, 0.1], [0.2, 0.2], [1.0, 2.0])
    parts = [
        compute_loss("ppo", {}, logprobs=logprobs[i : i + 1], inputs={k: v[i : i + 1] for k, v in inputs.items()})
        for i in range(2)
    ]
    weighted = compute_loss("ppo", {}, logprobs=logprobs, inputs=inputs | {"weights": torch.tensor([0.5, 3.0])})
    expected = 0.5 * parts[0].loss_sum + 3.0 * parts[1].loss_sum
    torch.testing.assert_close(weighted.loss_sum, expected)


def test_metrics_of_the_ratio() -> None:
    logprobs, inputs = tokens([0.1, 0.4], [0.2, 0.2], [1.0, 1.0])
    metrics = compute_loss("importance_sampling", {}, logprobs=logprobs, inputs=inputs).metrics
    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(
        {
            "loss:sum": -2.5,
            "tokens:sum": 2.0,
            "ratio:mean": 1.25,
            "ratio:max": 2.0,
            "kl_k1:mean": 0.0,
            "kl_k3:mean": 0.25,  # mean of (r − 1) − log r
        },
        abs=1e-6,
    )
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", sorted(NOT_PAIRS))
def test_nothing_active_is_a_loss_of_zero(name: str) -> None:
    logprobs, inputs = tokens([0.3], [0.2], [1.0])
    inputs["target_tokens"][:] = -100
    result = compute_loss(name, {}, logprobs=logprobs, inputs=inputs)
    assert result.num_active == 0
    assert {key: value.item() for key, value in result.metrics.items()} == {"loss:sum": 0.0, "tokens:sum": 0.0}
    assert gradient(result, logprobs) == [0.0]


@pytest.mark.parametrize(
    ("name", "config", "drop", "field"),
    [
        ("sft", {}, "", "loss_fn"),
        ("ppo", {"beta": 1.0}, "", "loss_fn_config.beta"),
        ("ppo", {}, "advantages", "loss_fn_inputs.advantages"),
        ("ppo", {"clip_low_threshold": 2.0}, "", "loss_fn_config.clip_low_threshold"),
        ("ppo", {"kl_coef": 0.1}, "", "loss_fn_inputs.ref_logprobs"),
        ("ppo", {"kl_coef": -0.1}, "", "loss_fn_config.kl_coef"),
        ("dpo", {"normalizer": 0.0}, "", "loss_fn_config.normalizer"),
        ("cross_entropy", {"kl_coef": 0.1}, "", "loss_fn_config.kl_coef"),
    ],
)
def test_what_is_wrong_is_named(name: str, config: Mapping[str, float], drop: str, field: str) -> None:
    logprobs, inputs = tokens([0.3], [0.2], [1.0])
    with pytest.raises(InvalidInput) as caught:
        compute_loss(name, config, logprobs=logprobs, inputs={k: v for k, v in inputs.items() if k != drop})
    assert caught.value.field == field


def test_a_wrong_shape_is_named() -> None:
    logprobs, inputs = tokens([0.3, 0.3], [0.2, 0.2], [1.0, 1.0])
    with pytest.raises(InvalidInput, match=r"shape \[1\], expected \[2\]") as caught:
        compute_loss("ppo", {}, logprobs=logprobs, inputs=inputs | {"advantages": torch.ones(1)})
    assert caught.value.field == "loss_fn_inputs.advantages"


# ---- sequences, pairs, and what every loss takes ---------------------------------------------------------------------


def grouped(
    name: str, p: list[float], inputs: dict[str, list[float]], ids: list[int], **config: float
) -> tuple[LossResult, Tensor]:
    logprobs = torch.tensor(p, requires_grad=True)
    tensors = {key: torch.tensor(values) for key, values in inputs.items()}
    tensors["target_tokens"] = torch.zeros(len(p), dtype=torch.long)
    sequences = Sequences(torch.tensor(ids), max(ids) + 1)
    return compute_loss(name, config, logprobs=logprobs, inputs=tensors, sequences=sequences), logprobs


@pytest.mark.parametrize(
    ("shift", "advantage", "value", "slope"),
    [
        # A sequence that is e^shift likelier on average; its value is by the sequence, each token's slope the same.
        (0.0, 2.0, -2.0, -2.0),
        (math.log(1.0003) - 1e-5, 2.0, -2 * 1.0003 * math.exp(-1e-5), -2 * 1.0003 * math.exp(-1e-5)),
        (math.log(1.0003) + 1e-5, 2.0, -2 * 1.0003, 0.0),
        (0.5, 2.0, -2 * 1.0003, 0.0),
        (0.5, -2.0, 2 * math.exp(0.5), 2 * math.exp(0.5)),
        (math.log(0.9997) + 1e-5, -2.0, 2 * 0.9997 * math.exp(1e-5), 2 * 0.9997 * math.exp(1e-5)),
        (math.log(0.9997) - 1e-5, -2.0, 2 * 0.9997, 0.0),
        (-0.5, -2.0, 2 * 0.9997, 0.0),
        (-0.5, 2.0, -2 * math.exp(-0.5), -2 * math.exp(-0.5)),
    ],
)
def test_gspo_by_hand_at_the_edges(shift: float, advantage: float, value: float, slope: float) -> None:
    """Of two tokens, one moved more than the other; a second sequence beside them has ratio 1."""
    q = [-1.0, -2.0, -3.0]
    p = [q[0] + shift + 0.3, q[1] + shift - 0.3, q[2]]
    result, logprobs = grouped("gspo", p, {"logprobs": q, "advantages": [advantage, advantage, 1.0]}, [0, 0, 1])
    assert result.loss_sum.item() == pytest.approx(2 * value - 1, abs=1e-5)
    assert gradient(result, logprobs) == pytest.approx([slope, slope, -1.0], abs=1e-5)
    assert result.metrics["clip_fraction:mean"].item() == pytest.approx(0.0 if slope else 2 / 3)


def test_the_mask_says_which_tokens_make_the_sequence_ratio() -> None:
    inputs = {"logprobs": [-1.0, -2.0, -1.0], "advantages": [1.0] * 3, "sequence_ratio_mask": [1.0, 0.0, 1.0]}
    result, _ = grouped("gspo", [-1.2, -9.0, -1.2], inputs, [0, 0, 0])
    assert result.metrics["sequence_ratio:mean"].item() == pytest.approx(math.exp(-0.2))
    assert result.loss_sum.item() == pytest.approx(-3 * math.exp(-0.2))


# Sums of p − ref are 1.5 and −0.5, so that Δ is 2.
PAIR = {"ref_logprobs": [-2.0, -3.0, -3.0]}, [-1.0, -2.5, -3.5], [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "config", "loss", "slope"),
    [
        ("dpo", {}, math.log1p(math.exp(-0.2)), -0.1 / (1 + math.exp(0.2))),
        ("dpo", {"beta": 0.5}, math.log1p(math.exp(-1)), -0.5 / (1 + math.exp(1))),
        ("dpo", {"beta": 0.5, "label_smoothing": 0.25},
         0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.exp(1)),
         -0.75 * 0.5 / (1 + math.exp(1)) + 0.25 * 0.5 / (1 + math.exp(-1))),
        ("ipo", {}, (2 - 5) ** 2, 2 * (2 - 5)),
        ("ipo", {"beta": 0.5}, 1.0, 2.0),
        ("ipo", {"beta": 0.5, "label_smoothing": 0.25}, 0.75 * 1 + 0.25 * 9, 0.75 * 2 + 0.25 * 6),
    ],
)  # fmt: skip
def test_pairs_by_hand(name: str, config: dict[str, float], loss: float, slope: float) -> None:
    inputs, p, ids = PAIR
    result, logprobs = grouped(name, p, inputs, ids, **config)
    assert result.loss_sum.item() == pytest.approx(loss, rel=1e-6)
    assert gradient(result, logprobs) == pytest.approx([slope, slope, -slope], rel=1e-6)
    beta = config.get("beta", 0.1)
    assert {key: value.item() for key, value in result.metrics.items()} == pytest.approx(
        {
            "loss:sum": loss,
            "tokens:sum": 3.0,
            "pairs:sum": 1.0,
            "accuracy:mean": 1.0,
            "margin:mean": 2 * beta,
            "chosen_reward:mean": 1.5 * beta,
            "rejected_reward:mean": -0.5 * beta,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_weights_of_one_over_length_make_a_difference_of_means(name: str) -> None:
    inputs, p, ids = PAIR
    result, _ = grouped(name, p, {**inputs, "weights": [0.5, 0.5, 1.0]}, ids, beta=1.0)
    assert result.metrics["margin:mean"].item() == pytest.approx(0.75 + 0.5)


def test_metrics_of_pairs_are_means_over_pairs() -> None:
    good, _ = grouped("dpo", [-1.0] * 5, {"ref_logprobs": [-2.0] * 4 + [-1.0]}, [0, 0, 0, 0, 1])
    bad, _ = grouped("dpo", [-1.0] * 4, {"ref_logprobs": [-1.0, -2.0, -1.0, -3.0]}, [0, 1, 2, 3])
    parts = [{key: value.item() for key, value in result.metrics.items()} for result in (good, bad)]
    combined = combine_metrics(parts)
    assert combined["accuracy:mean"] == pytest.approx(1 / 3)
    assert combined["margin:mean"] == pytest.approx((0.4 - 0.1 - 0.2) / 3)
    assert mean_loss(combined, normalizer=1.0) == pytest.approx(combined["loss:sum"] / 3)


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 data are not pairs") as caught:
        grouped("dpo", [-1.0], {"ref_logprobs": [-1.0]}, [0])
    assert caught.value.field == "data"


@pytest.mark.parametrize("name", sorted(LOSS_TABLE))
def test_the_normalizer_divides_the_sum_and_not_the_mean_for_people(name: str) -> None:
    inputs = {"logprobs": [-2.0, -3.0], "advantages": [1.0, -2.0], "ref_logprobs": [-2.0, -1.0]}
    inputs |= {"returns": [1.0, 0.0], "values": [-1.25, -1.5]}
    inputs = {key: values for key, values in inputs.items() if key in LOSS_TABLE[name].required}
    (plain, p), (divided, q) = (grouped(name, [-1.0, -1.5], inputs, [0, 1], normalizer=n) for n in (1.0, 8.0))
    assert divided.loss_sum.item() == pytest.approx(plain.loss_sum.item() / 8)
    assert gradient(divided, q) == pytest.approx([g / 8 for g in gradient(plain, p)])
    means = [
        mean_loss({key: value.item() for key, value in result.metrics.items()}, normalizer=n)
        for result, n in ((plain, 1.0), (divided, 8.0))
    ]
    assert means[0] == pytest.approx(means[1])


# v from 0 by a clip of 0.5 about the old value 0, R = 1: ½·coef·error² with coef = 2.
@pytest.mark.parametrize(
    ("v", "returns", "loss", "slope", "clipped"),
    [
        (0.25, 1.0, 0.5625, -1.5, 0.0),  # within the bounds
        (0.75, 1.0, 0.25, 0.0, 1.0),  # beyond them on the way to R: the clipped error (½)² is the larger one
        (-0.75, 1.0, 3.0625, -3.5, 0.0),  # beyond them and further off: it has to come back
        (0.5, 1.0, 0.25, -1.0, 0.0),  # at the bound itself
        (1.75, 1.0, 0.5625, 1.5, 0.0),  # past R, by more than the bound falls short
        (1.25, 1.0, 0.25, 0.0, 1.0),  # past R, by less
    ],
)
def test_the_clipped_value_loss_by_hand(v: float, returns: float, loss: float, slope: float, clipped: float) -> None:
    values = torch.tensor([v], requires_grad=True)
    inputs = {"returns": torch.tensor([returns]), "values": torch.tensor([0.0])}
    result = compute_loss("value", {"coef": 2.0}, logprobs=values, inputs=inputs)
    assert result.loss_sum.item() == pytest.approx(loss)
    assert gradient(result, values) == pytest.approx([slope])
    assert result.metrics["clip_fraction:mean"].item() == clipped
    halved = compute_loss("value", {"coef": 1.0, "clip": 0.5}, logprobs=values, inputs=inputs)
    assert halved.loss_sum.item() == pytest.approx(loss / 2)


def test_values_weights_and_what_is_told_of_them() -> None:
    values = torch.tensor([0.1, 0.2, 5.0, 0.3], requires_grad=True)
    inputs = {
        "returns": torch.tensor([0.5, -0.2, 7.0, 0.3]),
        "values": torch.tensor([0.1, 0.2, 5.0, 0.3]),
        "weights": torch.tensor([1.0, 3.0, 0.0, 1.0]),
    }
    result = compute_loss("value", {}, logprobs=values, inputs=inputs)
    assert result.loss_sum.item() == pytest.approx(0.25 * (0.4**2 + 3 * 0.4**2))
    assert gradient(result, values) == pytest.approx([-0.5 * 0.4, 0.5 * 3 * 0.4, 0, 0])
    assert result.num_active == 3
    metrics = combine_metrics([{key: value.item() for key, value in result.metrics.items()}])
    assert metrics["value:mean"] == pytest.approx(0.2)
    assert metrics["return:mean"] == pytest.approx(0.2)
    assert metrics["value_error:mean"] == pytest.approx(0, abs=1e-6)
    # the errors are 0.4, -0.4, 0; the returns 0.3, -0.4, 0.1 about their mean
    assert metrics["value:explained_variance"] == pytest.approx(1 - 0.32 / 0.26, rel=1e-5)


@pytest.mark.parametrize("name", [name for name, spec in LOSS_TABLE.items() if "ref_logprobs" in spec.optional])
def test_distance_to_a_reference_by_hand(name: str) -> None:
    inputs = {"logprobs": [-1.0, -1.0], "advantages": [0.0, 0.0], "ref_logprobs": [-1.0 + LN2, -1.0 - LN2]}
    weights = {"weights": [2.0, 1.0]}
    result, p = grouped(name, [-1.0, -1.0], {**inputs, **weights}, [0, 0], kl_coef=0.5)
    # exp(d) − d − 1 at d = ±ln 2 is 1 − ln 2 and ln 2 − ½; its slope by p is 1 − exp(d): −1 and ½.
    assert result.loss_sum.item() == pytest.approx(0.5 * (2 * (1 - LN2) + (LN2 - 0.5)), rel=1e-5)
    assert gradient(result, p) == pytest.approx([0.5 * 2 * -1.0, 0.5 * 0.5], rel=1e-5)
    assert result.metrics["kl_ref:mean"].item() == pytest.approx(0.25, rel=1e-5)
    without, _ = grouped(name, [-1.0, -1.0], {**inputs, **weights}, [0, 0])
    assert without.loss_sum.item() == 0


def test_stable_reinforce_by_hand() -> None:
    # r of 0.5, 1.0 and 2.0: what has become likelier counts once, what has become unlikely less
    logprobs, inputs = tokens(*SIX)
    result = compute_loss("stable_reinforce", {}, logprobs=logprobs, inputs=inputs)
    assert gradient(result, logprobs) == pytest.approx([-1.5, -3.0, -3.0, 1.5, 3.0, 3.0], abs=1e-5)
    plain = compute_loss("stable_reinforce", {"alpha": 0.0}, logprobs=logprobs, inputs=inputs)
    assert gradient(plain, logprobs) == pytest.approx([-3.0, -3.0, -3.0, 3.0, 3.0, 3.0], abs=1e-5)


def test_stable_reinforce_stays_near_the_policy_that_sampled() -> None:
    inputs = {"logprobs": [-1.0 + LN2, -1.0 - LN2], "advantages": [0.0, 0.0], "weights": [2.0, 1.0]}
    result, p = grouped("stable_reinforce", [-1.0, -1.0], inputs, [0, 0], kl_coef=0.5)
    assert result.loss_sum.item() == pytest.approx(0.5 * (2 * (1 - LN2) + (LN2 - 0.5)), rel=1e-5)
    assert gradient(result, p) == pytest.approx([0.5 * 2 * -1.0, 0.5 * 0.5], rel=1e-5)


# ---- against plain PEFT and torch over full logits -------------------------------------------------------------------


def reference_of_pairs(name: str, logprobs_BT: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(())
    log_ratio_B = torch.where(inputs["target_tokens"] != -100, logprobs_BT - inputs["ref_logprobs"], 0).sum(1)
    for chosen, rejected in log_ratio_B.reshape(-1, 2):
        delta = chosen - rejected
        total = total - torch.sigmoid(0.1 * delta).log() if name == "dpo" else total + (delta - 5) ** 2
    return total


def reference_of_sequences(logprobs_BT: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """GSPO, with the slope by hand where it is not clipped away."""
    total = torch.zeros(())
    columns = (logprobs_BT, inputs["target_tokens"], inputs["logprobs"], inputs["advantages"])
    for p_T, targets_T, q_T, a_T in zip(*columns, strict=True):
        p, q, a = (values[targets_T != -100] for values in (p_T, q_T, a_T))
        ratio = (p - q).mean().exp().item()
        bounded = min(max(ratio, 0.9997), 1.0003)
        moves = (ratio * a <= bounded * a) * ratio * a
        total = total - torch.min(ratio * a, bounded * a).sum() - (moves * (p - p.detach())).sum()
    return total


def reference_loss(name: str, logprobs_BT: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """The table of losses once more, with the defaults written out, token by token or pair by pair."""
    if name not in NOT_PAIRS:
        return reference_of_pairs(name, logprobs_BT, inputs)
    if name == "gspo":
        return reference_of_sequences(logprobs_BT, inputs)
    return reference_of_tokens(name, logprobs_BT, inputs)


def reference_of_tokens(name: str, logprobs_BT: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(())
    for place in (inputs["target_tokens"] != -100).nonzero().tolist():
        at = tuple(place)
        p = logprobs_BT[at]
        if name == "cross_entropy":
            total = total - inputs["weights"][at] * p
            continue
        q, a = inputs["logprobs"][at], inputs["advantages"][at]
        r = torch.exp(p - q)
        if name == "importance_sampling":
            total = total - r * a
        elif name == "ppo":
            total = total - min(r * a, torch.clip(r, 0.8, 1.2) * a)
        elif name == "cispo":
            total = total - min(max(r.item(), 0.0), 4.0) * a * p
        elif name == "stable_reinforce":
            total = total - min(r.item(), 1.0) * a * p
        elif name == "dro":
            total = total - (p * a - 0.05 / 2 * (p - q) ** 2)
        elif name == "dppo":
            leaves = (a > 0 and r > 1) or (a < 0 and r < 1)
            if not (leaves and abs(p.exp().item() - q.exp().item()) > 0.15):
                total = total - r * a
    return total


@pytest.fixture
def batch(ids_BT: Tensor) -> dict[str, Tensor]:
    """Inputs [B, T] with ignored places, old log-probabilities near and far, and advantages of both signs."""
    generator = torch.Generator().manual_seed(11)
    targets_BT = ids_BT.roll(-1, dims=1)
    targets_BT[:, -1] = -100
    targets_BT[1, :4] = -100
    return {
        "target_tokens": targets_BT,
        "weights": torch.rand(ids_BT.shape, generator=generator) + 0.1,
        "advantages": torch.randn(ids_BT.shape, generator=generator),
        "shift": torch.randn(ids_BT.shape, generator=generator) * 0.5,
    }


def loss_inputs(name: str, batch: Mapping[str, Tensor], now_BT: Tensor) -> dict[str, Tensor]:
    """`logprobs` are the present ones moved a little either way, so that ratios lie around 1.

    Every fourth was likely once, and has become far less so: that is what a trust region by divergence looks for.
    """
    if name == "cross_entropy":
        return {key: batch[key] for key in ("target_tokens", "weights")}
    given_BT = (now_BT.detach() + batch["shift"]).clamp(max=-1e-3)
    given_BT[:, ::4] = -0.5
    if name not in NOT_PAIRS:
        return {"target_tokens": batch["target_tokens"], "ref_logprobs": given_BT}
    return {"target_tokens": batch["target_tokens"], "advantages": batch["advantages"], "logprobs": given_BT}


def peft_logprobs(model: torch.nn.Module, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Through the full logits."""
    logits_BTV = model(ids_BT).logits
    return logits_BTV.log_softmax(-1).gather(-1, targets_BT.clamp(min=0)[..., None])[..., 0]


def ours(layers: LoraLayers, adapter: Adapter, name: str, ids_BT: Tensor, inputs: Mapping[str, Tensor]) -> LossResult:
    active_BT = inputs["target_tokens"] != -100
    with layers.active([adapter]):
        hidden_ND = layers.base.hidden_states(ids_BT)[active_BT]
        flat = {key: value[active_BT] for key, value in inputs.items()}
        logprobs_N, _ = token_logprobs(layers.base, hidden_ND, flat["target_tokens"], max_logits=384 * 7)
    sequences = Sequences(active_BT.nonzero()[:, 0], len(ids_BT))
    return compute_loss(name, {}, logprobs=logprobs_N, inputs=flat, sequences=sequences)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("name", sorted(OF_LOGPROBS))
def test_value_and_gradient_are_those_of_plain_peft_and_torch(
    load: Load, make_adapter: Make, ids_BT: Tensor, batch: dict[str, Tensor], kind: str, name: str
) -> None:
    layers = LoraLayers.install(load(kind))
    adapter = make_adapter(layers, train_unembed=kind == "llama")
    model = peft.get_peft_model(
        load(kind).model,
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(layers.module_names(list(adapter.weights)))),
    ).eval()
    peft.set_peft_model_state_dict(model, adapter.state_dict())
    expected_logprobs = peft_logprobs(model, ids_BT, batch["target_tokens"])
    inputs = loss_inputs(name, batch, expected_logprobs)
    expected = reference_loss(name, expected_logprobs, inputs)
    expected.backward()

    result = ours(layers, adapter, name, ids_BT, inputs)
    result.loss_sum.backward()
    torch.testing.assert_close(result.loss_sum, expected, rtol=1e-5, atol=0)
    wanted = {key.replace(".default", ""): p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert set(wanted) == set(adapter.names())
    for key, parameter in zip(adapter.names(), adapter.parameters(), strict=True):
        assert parameter.grad is not None
        scale = float(wanted[key].abs().max())
        torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-5, atol=1e-5 * scale)
    if "clip_fraction:mean" in result.metrics and name != "cispo":
        assert 0 < result.metrics["clip_fraction:mean"] < 1, "the batch must reach both sides of the trust region"


@pytest.mark.parametrize("name", sorted(OF_LOGPROBS))
def test_data_in_parts_accumulate_to_the_whole(
    layers: LoraLayers, make_adapter: Make, ids_BT: Tensor, batch: dict[str, Tensor], name: str
) -> None:
    adapter = make_adapter(layers)
    with layers.active([adapter]), torch.no_grad():
        now_BT = layers.base.logits(layers.base.hidden_states(ids_BT)).log_softmax(-1)
    inputs = loss_inputs(name, batch, now_BT.gather(-1, batch["target_tokens"].clamp(min=0)[..., None])[..., 0])

    def accumulate(parts: list[slice]) -> tuple[dict[str, float], list[Tensor]]:
        metrics = []
        for part in parts:
            result = ours(layers, adapter, name, ids_BT[part], {key: value[part] for key, value in inputs.items()})
            result.loss_sum.backward()
            metrics.append({key: value.item() for key, value in result.metrics.items()})
        found = [parameter.grad for parameter in adapter.parameters() if parameter.grad is not None]
        for parameter in adapter.parameters():
            parameter.grad = None
        return combine_metrics(metrics), found

    whole_metrics, whole = accumulate([slice(0, 4)])
    first = [slice(0, 1), slice(1, 2)] if name in NOT_PAIRS else [slice(0, 2)]
    split_metrics, split = accumulate([*first, slice(2, 4)])
    assert split_metrics == pytest.approx(whole_metrics, rel=1e-5, abs=1e-6)
    assert len(whole) == len(split) == len(adapter.parameters())
    for one, other in zip(split, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
