"""What TRL does not have, against verl's functions on tensors: GAE, the value loss, dual clipping, DPPO, DRO and more.

`make test-verl` makes the environment that verl needs; elsewhere there is nothing to compare with.
"""

import os

import numpy as np
import pytest
import torch

if "FARSTEP_TEST_VERL" not in os.environ:
    pytest.skip("make test-verl", allow_module_level=True)

from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

from farstep.rollout import Rollout
from farstep.rollout.agents import AgentItem
from farstep.rollout.results import RolloutSample
from farstep.trainers import PPOTrainer, TrainSequence
from farstep.trainers.config.algorithms import RLConfig
from farstep.trainers.rl.advantages import group_advantages
from farstep.trainers.rl.policy_loss import PolicyLoss, kl_estimate
from farstep_model.embedded import model_dir
from farstep_model.losses import compute_loss
from farstep_model.sequences import Sequences
from tests.support.engine import Engines
from tests.support.trainees import settings

LENGTHS, WIDTH = (5, 9, 2, 7), 9
LOW, HIGH, DUAL = 0.2, 0.28, 1.3


def draw(shift=0.4):
    """fp64 [B, T]: present and old log-probabilities, advantages of both signs, of a row one; a mask with holes."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(len(LENGTHS), WIDTH).abs() - 0.2
    present = (old + shift * normal(len(LENGTHS), WIDTH)).clamp(max=-0.01).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.7, -0.4], dtype=torch.float64)[:, None].expand(-1, WIDTH)
    steps = torch.arange(WIDTH)
    mask = ((steps < torch.tensor(LENGTHS)[:, None]) & (steps % 4 != 1)).double()
    return present, old, advantages.contiguous(), mask


def ours(name, config, present, mask, **inputs):
    """The worker's loss of the tokens that the mask chooses, and its gradient where they were, [B, T]."""
    chosen = mask != 0
    flat = {key: values[chosen] for key, values in inputs.items()} | {"target_tokens": chosen.long()[chosen]}
    sequences = Sequences(chosen.nonzero()[:, 0], len(LENGTHS))
    loss = compute_loss(name, config, logprobs=present[chosen], inputs=flat, sequences=sequences).loss_sum
    return loss, torch.autograd.grad(loss, present)[0]


def actor():
    bounds = {"clip_ratio": LOW, "clip_ratio_low": LOW, "clip_ratio_high": HIGH, "clip_ratio_c": 20.0}
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, use_dynamic_bsz=False, **bounds)


def assert_same(found, wanted, *, present, value=True, rtol=1e-9):
    """fp64 on both sides; ours has (loss, gradient)."""
    if value:
        assert found[0].item() == pytest.approx(wanted.item(), rel=rtol)
    torch.testing.assert_close(found[1], torch.autograd.grad(wanted, present)[0], rtol=rtol, atol=1e-12)
    assert found[1].abs().max() > 1e-3


def bounds(low=1 - LOW, high=1 + HIGH):
    return {"clip_low_threshold": low, "clip_high_threshold": high}


@pytest.mark.parametrize("name", ["ppo", "gspo", "cispo", "dro", "dppo"])
def test_losses_by_name(name):
    present, old, advantages, mask = draw(0.1 if name == "gspo" else 0.4)
    given = {"logprobs": old, "advantages": advantages}
    wanted = core_algos.get_policy_loss_fn({"ppo": "vanilla", "dppo": "dppo_tv"}.get(name, name))
    config = actor()
    match name:
        case "gspo":
            # theirs is a mean over rows of each one's mean, ours has weights for it
            given["weights"] = (mask / mask.sum(1, keepdim=True)).contiguous()
            found = ours(name, bounds() | {"normalizer": len(LENGTHS)}, present, mask, **given)
        case "dro":
            object.__setattr__(config.policy_loss, "dro_beta", 0.3)
            found = ours(name, {"beta": 0.3, "normalizer": mask.sum().item()}, present, mask, **given)
        case "dppo":
            object.__setattr__(config, "clip_ratio_high", LOW)  # ours has one threshold
            found = ours(name, {"divergence_threshold": LOW, "normalizer": mask.sum().item()}, present, mask, **given)
        case _:
            found = ours(name, bounds() | {"normalizer": mask.sum().item()}, present, mask, **given)
    mode = "seq-mean-token-mean" if name == "gspo" else "token-mean"
    loss, _ = wanted(old, present, advantages, mask, mode, config)
    # Theirs of dppo has the ratio outside of the gradient, and so another value; of gspo it has 1e-8 in its means.
    rtol = 1e-7 if name == "gspo" else 1e-9
    assert_same(found, loss, present=present, value=name != "dppo", rtol=rtol)


def rows_of(present, old, advantages, mask):
    """Each behind a token that is never trained."""
    return [
        TrainSequence([1] * (WIDTH + 1), [0.0, *m], logprobs=[0.0, *q], advantages=[0.0, *a])
        for q, a, m in zip(old.tolist(), advantages.tolist(), mask.tolist(), strict=True)
    ]


def test_dual_clipping():
    present, old, advantages, mask = draw()
    loss = PolicyLoss.of(RLConfig(clip_low=LOW, clip_high=HIGH, dual_clip=DUAL), "token")
    padded = [torch.cat([torch.zeros(1, dtype=row.dtype), row]) for row in present]
    found, metrics = loss(rows_of(present, old, advantages, mask), padded, mask.sum().item())
    config = actor()
    object.__setattr__(config, "clip_ratio_c", DUAL)
    wanted, theirs = core_algos.compute_policy_loss_vanilla(old, present, advantages, mask, "token-mean", config)
    assert_same((found, torch.autograd.grad(found, present, retain_graph=True)[0]), wanted, present=present)
    assert theirs["actor/pg_clipfrac_lower"] > 0
    assert metrics["clip_fraction_lower"] == pytest.approx(theirs["actor/pg_clipfrac_lower"])
    assert metrics["clip_fraction"] == pytest.approx(theirs["actor/pg_clipfrac"])


@pytest.mark.parametrize("kind", ["k1", "abs", "k2", "k3"])
def test_estimates_of_the_divergence(kind):
    present, reference, _, _ = draw()
    found = kl_estimate(present, reference, kind).sum()
    wanted = core_algos.kl_penalty(present, reference, kind).sum()
    assert_same((found, torch.autograd.grad(found, present, retain_graph=True)[0]), wanted, present=present)


@pytest.mark.parametrize("clip", [0.2, 0.5])
def test_the_value_loss(clip):
    values, old, _, mask = draw(1.0)
    returns = old + torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    wanted, clipped = core_algos.compute_value_loss(values, returns, old, mask, clip)
    found = ours("value", {"clip": clip, "coef": 1.0, "normalizer": mask.sum().item()}, values, mask,
                 returns=returns, values=old)  # fmt: skip
    assert_same(found, wanted, present=values)
    assert 0 < clipped < 1


@pytest.mark.parametrize("by_std", [True, False])
def test_advantages_over_groups(by_std):
    """Theirs divides by the sample's deviation, ours by the population's."""
    rewards = np.random.default_rng(3).normal(size=(2, 4))
    per_token = torch.zeros(8, 3, dtype=torch.float64)
    per_token[:, -1] = torch.tensor(rewards).ravel()
    wanted, _ = core_algos.compute_grpo_outcome_advantage(
        per_token, torch.ones_like(per_token), np.repeat([0, 1], 4), epsilon=1e-8, norm_adv_by_std_in_grpo=by_std
    )
    found = [group_advantages(group, scale="std" if by_std else "mean") for group in rewards]
    factor = np.sqrt(3 / 4) if by_std else 1.0
    np.testing.assert_allclose(np.concatenate(found) * factor, wanted[:, 0].numpy(), rtol=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.6)])
def test_ppos_advantages_and_returns(tmp_path, gamma, lam):
    """From a rollout through our trainer and its critic, with tools' tokens between those that were chosen."""
    from transformers import AutoTokenizer

    engines = Engines(tmp_path / "store", tokenizer=AutoTokenizer.from_pretrained(model_dir()))
    config = settings(tmp_path, rl={"gamma": gamma, "gae_lambda": lam, "critic": {"warmup_steps": 0}})
    with PPOTrainer(config, client=engines, train_data=[{"prompt": "a"}], reward_fn=lambda completion: 0.0) as trainer:
        trainer.init()
        numbers = np.random.default_rng(0)
        samples = []
        for index, length in enumerate(LENGTHS):
            tokens = numbers.integers(20, 900, length + 3).tolist()
            mask = [0.0] * 3 + [float(step % 4 != 1) for step in range(length)]
            row = TrainSequence(tokens, mask, logprobs=[-1.0] * len(tokens), reward=float(numbers.normal()))
            samples.append(RolloutSample(AgentItem({}, "", None, index, 0), rows=[row], reward=row.reward))
        rows = trainer.experience(Rollout(samples))
    shape = len(LENGTHS), WIDTH
    rewards, values, mask = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    for index, row in enumerate(rows):
        size = len(row) - 3
        values[index, :size] = torch.tensor(row.values[3:])
        mask[index, :size] = torch.tensor(row.loss_mask[3:])
        rewards[index, int(mask[index].nonzero().max())] = row.reward
    assert values.std() > 1e-2, "the critic says something"
    advantages, returns = core_algos.compute_gae_advantage_return(rewards, values, mask, gamma, lam)
    chosen = mask != 0
    found = {
        name: torch.tensor(
            [value for row in rows for value, m in zip(getattr(row, name), row.loss_mask, strict=True) if m]
        )
        for name in ("returns", "advantages")
    }
    torch.testing.assert_close(found["returns"].double(), returns[chosen], rtol=1e-6, atol=1e-7)
    number = chosen.sum()
    whitened = found["advantages"].double() * ((number - 1) / number).sqrt()
    torch.testing.assert_close(whitened, advantages[chosen], rtol=1e-5, atol=1e-6)
