"""The losses of algorithms against formulas written here from the papers, in fp64: value and gradient.

Against TRL's own code they are in tests/unit/trl.
"""

import itertools

import numpy as np
import pytest
import torch

from farstep.trainers import TrainSequence
from farstep.trainers.config.algorithms import RLConfig
from farstep.trainers.rl.policy_loss import PolicyLoss, kl_estimate
from farstep_model.losses import compute_loss
from farstep_model.sequences import Sequences

NORMALIZER = 7.0


def rows_and_logprobs(seed=0):
    draw = np.random.default_rng(seed)
    rows, present = [], []
    for length in (5, 8):
        old = -draw.uniform(0.1, 3, length)
        mask = (draw.random(length) < 0.7).astype(float)
        mask[-1] = 0.5  # a weight of its own
        rows.append(
            TrainSequence(
                tokens=draw.integers(0, 100, length).tolist(),
                loss_mask=mask.tolist(),
                logprobs=old.tolist(),
                advantages=draw.normal(size=length).tolist(),
                ref_logprobs=(old + draw.normal(0, 0.5, length)).tolist(),
            )
        )
        present.append(torch.tensor(old + draw.normal(0, 0.6, length), dtype=torch.float64, requires_grad=True))
    return rows, present


def by_the_papers(rows, present, *, level, low, high, dual_clip, kl_coef, kl_type, unit, is_kl_corrected=False):
    """Token by token, in plain Python over autograd scalars."""
    total = 0.0
    for row, p in zip(rows, present, strict=True):
        chosen = [t for t in range(1, len(row)) if row.loss_mask[t]]
        mean = sum(p[t].item() - row.logprobs[t] for t in chosen) / len(chosen)
        for t in chosen:
            if unit:
                ratio = torch.exp(p[t] - p[t].detach())
            elif level == "sequence":  # GSPO-token, eq. 14: sg[s_i] · π_t / sg[π_t]
                ratio = np.exp(mean) * torch.exp(p[t]) / torch.exp(p[t]).detach()
            else:
                ratio = torch.exp(p[t]) / np.exp(row.logprobs[t])
            a = row.advantages[t]
            gain = torch.min(ratio * a, ratio.clamp(low, high) * a)
            if dual_clip is not None and a < 0:
                gain = torch.max(gain, torch.tensor(dual_clip * a, dtype=torch.float64))
            d = p[t] - row.ref_logprobs[t]
            kl = {"k1": d, "abs": abs(d), "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kl_type]
            if is_kl_corrected:  # DeepSeek-V3.2: π_θ / π_old of the token, whatever the loss's ratio is of
                kl = kl * (torch.exp(p[t] - p[t].detach()) if unit else torch.exp(p[t] - row.logprobs[t]))
            total = total + row.loss_mask[t] * (kl_coef * kl - gain)
    return total / NORMALIZER


def gradients(loss, present):
    return [grad.numpy() for grad in torch.autograd.grad(loss, present)]


CASES = [
    dict(zip(("level", "dual_clip", "kl_coef", "kl_type", "unit"), case, strict=True))
    for case in itertools.chain(
        itertools.product(["token", "sequence"], [None, 1.1], [0.0], ["k3"], [False, True]),
        itertools.product(["token"], [None], [0.3], ["k1", "abs", "k2", "k3"], [False]),
    )
] + [
    {"level": level, "dual_clip": None, "kl_coef": 0.3, "kl_type": "k3", "unit": unit, "is_kl_corrected": True}
    for level, unit in [("token", False), ("token", True), ("sequence", False)]
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_those_of_the_papers(case):
    rows, present = rows_and_logprobs()
    case = dict(case)
    unit = case.pop("unit")
    bounds = {"low": 0.8, "high": 1.3} if case["level"] == "token" else {"low": 0.99, "high": 1.01}
    loss = PolicyLoss(**bounds, is_unit=unit, **case)
    value, metrics = loss(rows, present, NORMALIZER)
    expected = by_the_papers(rows, present, **bounds, unit=unit, **case)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for found, wanted in zip(gradients(value, present), gradients(expected, present), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert unit or 0 < metrics["clip_fraction"] < 1
    if case["dual_clip"] and not unit and case["level"] == "token":
        assert metrics["clip_fraction_lower"] > 0


@pytest.mark.parametrize(
    "settings", [{"ratio": "sampled"}, {"ratio": "unit"}, {"kl_coef": 0.2}, {"clip_low": 0.1, "clip_high": 0.3}]
)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_workers_loss_of_the_same_settings_has_the_same_gradient(level, settings):
    """The named loss that `PolicyLoss` chooses, as the worker computes it, in fp32."""
    rows, present = rows_and_logprobs(1)
    loss = PolicyLoss.of(RLConfig(**settings), level)
    assert loss.is_named
    own, _ = loss(rows, present, NORMALIZER)
    lengths = [len(row) - 1 for row in rows]
    given = {name: torch.tensor(np.concatenate([getattr(row, name)[1:] for row in rows])) for name in loss.inputs}
    inputs = {name: values.float() for name, values in given.items()}
    inputs["weights"] = torch.tensor(np.concatenate([row.loss_mask[1:] for row in rows])).float()
    inputs["target_tokens"] = torch.tensor(np.concatenate([row.tokens[1:] for row in rows]))
    p = torch.cat([each[1:] for each in present]).float()
    result = compute_loss(
        loss.name,
        {**loss.settings, "normalizer": NORMALIZER},
        logprobs=p,
        inputs=inputs,
        sequences=sequences_of(lengths),
    )
    if not loss.is_unit:  # its value is that of another function with the same gradient
        assert result.loss_sum.item() == pytest.approx(own.item(), rel=1e-5)
    for found, wanted in zip(gradients(result.loss_sum, present), gradients(own, present), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def sequences_of(lengths):
    return Sequences(torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)), len(lengths))


def test_what_the_worker_has_is_left_to_it():
    def loss(**settings):
        return PolicyLoss.of(RLConfig(**settings), "token")

    assert loss().name == "ppo"
    assert loss().settings == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert loss(kl_coef=0.1).is_named
    assert not loss(kl_coef=0.1, kl_type="k2").is_named
    assert not loss(kl_coef=0.1, kl_corrected=True).is_named
    assert loss(kl_corrected=True).is_named  # nothing to correct
    assert not loss(dual_clip=3).is_named
    assert loss(dual_clip=3, ratio="unit").is_named  # ratios of 1 are never above c
    assert loss(ratio="unit").settings == {"clip_low_threshold": 1, "clip_high_threshold": 1}


def test_estimates_of_the_divergence_agree_on_average():
    """Over all tokens of a small vocabulary, k1 and k3 are both KL(p ‖ ref); k3 is never below 0."""
    draw = torch.Generator().manual_seed(0)
    p, ref = (torch.randn(6, generator=draw, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (p.exp() * (p - ref)).sum()
    for kind in ("k1", "k3"):
        assert (p.exp() * kl_estimate(p, ref, kind)).sum().item() == pytest.approx(exact.item())
    assert (kl_estimate(p, ref, "k3") >= 0).all()
