"""Our trainers and TRL's on the same rows with the same adapter: the loss, and the gradient of every LoRA matrix.

Ours go the way of a user, from rows through the trainer's own step to the worker's passes; only HTTP is left out.
TRL's make their batches and compute their losses with their own code. Where the two define something differently,
docs/losses.md says how, and the test converts just that.
"""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch

from farstep.rollout import Rollout
from farstep.rollout.agents import AgentItem
from farstep.rollout.results import RolloutSample
from farstep.trainers import CausalTrainer, DPOTrainer, GRPOTrainer, GSPOTrainer, IPOTrainer, SFTTrainer, TrainSequence
from tests.support.engine import Engines
from tests.support.trainees import pairs, rows, settings
from tests.unit.trl import of_trl

# fp32 on both sides. TRL pads on the left and multiplies whole batches, the worker cuts its own micro-batches and goes
# through other kernels: a few roundings of 6e-8 in every sum, some hundred of them on the way, and sums of advantages
# of both signs. 3e-6 is the most that was seen.
RTOL = 3e-5


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """By layout. Micro-batches are small: every batch here is cut into several."""
    torch.set_num_threads(1)

    @cache
    def make(layout):
        return Engines(tmp_path_factory.mktemp("store"), tokenizer=of_trl.tokenizer(), layout=layout, token_budget=64)

    return make


@pytest.fixture
def begun(engines, tmp_path):
    """Makes a trainer that has begun, and closes it."""
    opened = []

    def begin(kind, data, *, layout="padded", **changes):
        config = settings(tmp_path / f"{len(opened)}", **changes)
        trainer = kind(config, client=engines(layout), train_data=data, reward_fn=lambda completion: 0.0)
        trainer.init()
        opened.append(trainer)
        return trainer

    yield begin
    for trainer in opened:
        trainer.close()


def assert_same(trainer, batch, trl, losses):
    """One step of ours, and what TRL's losses of the same step add up to."""
    run = trainer.client
    loss = trainer.step(batch)["loss"]
    wanted = of_trl.gradients(trl, losses)
    assert loss == pytest.approx(sum(each.item() for each in losses), rel=RTOL, abs=1e-6)
    assert set(wanted) == set(run.adapter.names())
    scale = max(float(each.abs().max()) for each in wanted.values())
    assert scale > 1e-5, "a gradient of nothing is no comparison"
    for name, found in zip(run.adapter.names(), run.stepped, strict=True):
        torch.testing.assert_close(found, wanted[name], rtol=RTOL, atol=RTOL * scale)


# ---- cross-entropy ---------------------------------------------------------------------------------------------------


def labelled(row):
    return {
        "input_ids": row.tokens,
        "labels": [token if weight else -100 for token, weight in zip(row.tokens, row.loss_mask, strict=True)],
    }


@pytest.mark.parametrize("cuts", [[8], [3, 3, 2]])
def test_sft_is_the_mean_over_all_targets_of_a_step(begun, tmp_path, cuts):
    """However it is accumulated: `num_items_in_batch` of TRL is our normalizer."""
    data = rows(8)
    trainer = begun(SFTTrainer, data, mini_bs=cuts[0])
    trl = of_trl.supervised(trainer.client, tmp_path / "trl")
    total = torch.tensor(sum(row.num_targets for row in data))
    examples = iter(data)
    losses = [
        trl.compute_loss(
            trl.model,
            trl.data_collator([labelled(row) for row in itertools.islice(examples, size)]),
            num_items_in_batch=total,
        )
        for size in cuts
    ]
    assert_same(trainer, data, trl, losses)


def test_causal_is_the_mean_over_all_tokens_but_the_first(begun, tmp_path):
    data = [row.replace(loss_mask=[1.0] * len(row)) for row in rows(4)]
    trainer = begun(CausalTrainer, data)
    trl = of_trl.supervised(trainer.client, tmp_path / "trl")
    batch = trl.data_collator([{"input_ids": row.tokens} for row in data])
    assert_same(trainer, data, trl, [trl.compute_loss(trl.model, batch)])


# ---- preferences -----------------------------------------------------------------------------------------------------


def compared(pair):
    size = pair[0].prompt_mask.index(0)
    prompt, chosen, rejected = pair[0].tokens[:size], pair[0].tokens[size:], pair[1].tokens[size:]
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def prepared(trainer, data):
    """With what the reference says of them."""
    return trainer.begin_batch([row for pair in data for row in pair])()


@pytest.mark.parametrize(("mini_bs", "layout"), [(None, "padded"), (2, "padded"), (None, "packed")])
def test_dpo(begun, tmp_path, mini_bs, layout):
    data = pairs(4)
    trainer = begun(DPOTrainer, data, preference={"beta": 0.4}, mini_bs=mini_bs, layout=layout)
    trl = of_trl.preferences(trainer.client, tmp_path / "trl", beta=0.4)
    loss = trl.compute_loss(trl.model, trl.data_collator(list(map(compared, data))))
    assert abs(loss.item() - math.log(2)) > 1e-3, "the adapter has to have left its reference"
    assert_same(trainer, prepared(trainer, data), trl, [loss])
    metrics = {name: values[-1] for name, values in trl._metrics["train"].items()}
    for ours, theirs in (
        ("accuracy", "rewards/accuracies"),
        ("margin", "rewards/margins"),
        ("chosen_reward", "rewards/chosen"),
        ("rejected_reward", "rewards/rejected"),
    ):
        assert trainer.metrics[ours] == pytest.approx(metrics[theirs], rel=1e-4, abs=1e-5)


def test_label_smoothing_is_that_of_trls_loss_aot(begun, tmp_path):
    """TRL smooths in `aot`, which sorts its batch: of a batch of one pair it is cDPO."""
    data = pairs(3)
    trainer = begun(DPOTrainer, data, preference={"beta": 0.4, "label_smoothing": 0.2})
    trl = of_trl.preferences(trainer.client, tmp_path / "trl", beta=0.4, label_smoothing=0.2, loss_type=["aot"])
    losses = [trl.compute_loss(trl.model, trl.data_collator([compared(pair)])) / len(data) for pair in data]
    assert_same(trainer, prepared(trainer, data), trl, losses)


@pytest.mark.parametrize(("loss", "theirs"), [("ipo", "ipo"), ("sigmoid", "sigmoid_norm")])
def test_preferences_of_means(begun, tmp_path, loss, theirs):
    """TRL's Δ of these is a difference of means by token; ours is one of sums, unless it is told otherwise."""
    data = pairs(4)
    trainer = begun(DPOTrainer, data, preference={"beta": 0.4, "loss": loss, "length_normalized": True})
    trl = of_trl.preferences(trainer.client, tmp_path / "trl", beta=0.4, loss_type=[theirs])
    loss = trl.compute_loss(trl.model, trl.data_collator(list(map(compared, data))))
    assert_same(trainer, prepared(trainer, data), trl, [loss])


def test_ipo_of_sums(begun, tmp_path):
    """As in the paper; of answers of one token it is TRL's."""
    data = [[row.replace(tokens=row.tokens[:5], loss_mask=row.loss_mask[:5], prompt_mask=row.prompt_mask[:5])
             for row in pair] for pair in pairs(4)]  # fmt: skip
    trainer = begun(IPOTrainer, data, preference={"beta": 0.4})
    trl = of_trl.preferences(trainer.client, tmp_path / "trl", beta=0.4, loss_type=["ipo"])
    loss = trl.compute_loss(trl.model, trl.data_collator(list(map(compared, data))))
    assert_same(trainer, prepared(trainer, data), trl, [loss])


# ---- policies --------------------------------------------------------------------------------------------------------

GROUPS, SAMPLES, MAX_TOKENS = 3, 3, 12


def sampled(engine, *, spread, seed=0):
    """Answers of unequal lengths with tools' tokens in them, sampled by a policy that is a little off the present."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(GROUPS):
        prompt = draw.integers(20, 900, draw.integers(3, 6)).tolist()
        for _ in range(SAMPLES):
            answer = draw.integers(20, 900, draw.integers(2, 9)).tolist()
            row = TrainSequence.from_prompt_completion(prompt, answer, reward=float(draw.normal()))
            mask = [weight * (index % 4 != 2) for index, weight in enumerate(row.loss_mask)]
            mask[-1] = 1.0
            found.append(row.replace(loss_mask=mask))
    outputs = engine.forward([row.to_datum(targets="all") for row in found]).result().loss_fn_outputs
    return [
        row.replace(logprobs=[0.0, *(each["logprobs"].to_numpy() + draw.normal(0, spread, len(row) - 1)).tolist()])
        for row, each in zip(found, outputs, strict=True)
    ]


def rollout_of(found):
    """As a session would have given it."""
    return Rollout(
        [
            RolloutSample(AgentItem({}, "", None, index // SAMPLES, index % SAMPLES), rows=[row], reward=row.reward)
            for index, row in enumerate(found)
        ]
    )


def answer_of(values, row):
    """The part of a row's values that is of its answer."""
    return list(values[row.prompt_mask.index(0) :])


def their_batch(trl, found):
    """Rewards become advantages in TRL's own code. What is given to it is what it has of another process's sampling."""
    inputs = trl._generate_and_score_completions([{"prompt": "a"} for _ in found])
    width = inputs["completion_ids"].shape[1]
    old = [answer_of(row.logprobs, row) for row in found]
    inputs["old_per_token_logps"] = torch.tensor([values + [0.0] * (width - len(values)) for values in old])
    return inputs


def their_rollout(found):
    return {
        "prompt_ids": [row.tokens[: row.prompt_mask.index(0)] for row in found],
        "completion_ids": [answer_of(row.tokens, row) for row in found],
        "env_mask": [[int(weight != 0) for weight in answer_of(row.loss_mask, row)] for row in found],
        "logprobs": None,
        "score": [row.reward for row in found],
    }


def rl(**changes):
    return {"normalize_advantages": "mean", "clip_low": 0.2, "clip_high": 0.2, **changes}


class CISPOTrainer(GRPOTrainer):
    name = "trl-cispo"
    loss_fn = "cispo"
    loss_inputs = ("logprobs", "advantages")

    def loss_config(self):
        return {"clip_high_threshold": 1.1}


SEQUENCE = {"loss_aggregation": "sequence"}
BY_SEQUENCE = {"importance_sampling_level": "sequence"}
CASES = {
    "grpo": (GRPOTrainer, rl(**SEQUENCE), {"loss_type": "grpo"}),
    "bnpo": (GRPOTrainer, rl(), {"loss_type": "bnpo"}),
    "dapo": (GRPOTrainer, rl(clip_high=0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": (GRPOTrainer, rl(loss_aggregation="constant"),
                {"loss_type": "dr_grpo", "max_completion_length": MAX_TOKENS}),
    "cispo": (CISPOTrainer, rl(), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "kl": (GRPOTrainer, rl(kl_coef=0.3), {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False}),
    "kl by row": (GRPOTrainer, rl(kl_coef=0.3, **SEQUENCE),
                  {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}),
    "kl corrected": (GRPOTrainer, rl(kl_coef=0.3, kl_corrected=True), {"loss_type": "dapo", "beta": 0.3}),
    "delta": (GRPOTrainer, rl(dual_clip=1.25), {"loss_type": "dapo", "delta": 1.25}),
    "gspo": (GSPOTrainer, rl(clip_low=0.03, clip_high=0.04),
             {"loss_type": "grpo", "epsilon": 0.03, "epsilon_high": 0.04, **BY_SEQUENCE}),
    "gspo by token": (GSPOTrainer, rl(clip_low=0.03, clip_high=0.04, loss_aggregation="token"),
                      {"loss_type": "dapo", "epsilon": 0.03, "epsilon_high": 0.04, **BY_SEQUENCE}),
}  # fmt: skip


def policies(begun, folder, kind, ours, theirs, **changes):
    trainer = begun(kind, [{"prompt": "a"}], rl=ours, sampling={"max_tokens": MAX_TOKENS}, **changes)
    found = sampled(trainer.client, spread=0.3)
    wanted = {"num_generations": SAMPLES, "beta": 0.0, "epsilon": 0.2, "scale_rewards": "none", **theirs}
    trl = of_trl.policy(trainer.client, folder, rollout=their_rollout(found), **wanted)
    return trainer, trainer.experience(rollout_of(found)), trl, their_batch(trl, found)


def advantages_of(batch):
    """Of a row one, at all of its trained tokens."""
    found = [{value for value, weight in zip(row.advantages, row.loss_mask, strict=True) if weight} for row in batch]
    assert {len(values) for values in found} == {1}
    return [value for (value,) in found]


@pytest.mark.parametrize(
    ("case", "layout"), [*((case, "padded") for case in sorted(CASES)), ("gspo", "packed"), ("kl", "packed")]
)
def test_policy_losses(begun, tmp_path, case, layout):
    kind, ours, theirs = CASES[case]
    trainer, batch, trl, inputs = policies(begun, tmp_path / "trl", kind, ours, theirs, mini_bs=4, layout=layout)
    assert advantages_of(batch) == pytest.approx(inputs["advantages"].tolist(), rel=1e-5, abs=1e-6)
    assert_same(trainer, batch, trl, [trl.compute_loss(trl.model, inputs)])
    if case != "delta":  # what is clipped from above twice is counted twice by ours
        clipped = trl._metrics["train"].get("clip_ratio/region_mean")
        if clipped and "gspo" not in case:
            assert 0.1 < clipped[-1] < 0.9
            assert trainer.metrics["clip_fraction"] == pytest.approx(clipped[-1], abs=1e-6)


def test_settings_in_trls_words(begun, tmp_path):
    """The same ones to both."""
    given = {
        "num_generations": SAMPLES, "max_completion_length": MAX_TOKENS, "loss_type": "dr_grpo",
        "scale_rewards": "none", "epsilon": 0.1, "epsilon_high": 0.2, "delta": 1.3, "num_iterations": 1,
    }  # fmt: skip
    trainer = begun(GRPOTrainer, [{"prompt": "a"}], **given)
    found = sampled(trainer.client, spread=0.3)
    trl = of_trl.policy(trainer.client, tmp_path / "trl", rollout=their_rollout(found), beta=0.0, **given)
    inputs = their_batch(trl, found)
    assert_same(trainer, trainer.experience(rollout_of(found)), trl, [trl.compute_loss(trl.model, inputs)])


@pytest.mark.parametrize(("ours", "theirs"), [("std", "group"), ("batch", "batch")])
def test_advantages_over_a_deviation(begun, tmp_path, ours, theirs):
    """TRL divides by the sample's standard deviation + 1e-4, we by the population's + 1e-8."""
    given = rl(normalize_advantages=ours)
    trainer, batch, trl, inputs = policies(
        begun, tmp_path / "trl", GRPOTrainer, given, {"loss_type": "dapo", "scale_rewards": theirs}
    )
    rewards = np.array([row.reward for row in batch]).reshape((GROUPS, SAMPLES) if ours == "std" else (1, -1))
    sizes = rewards.std(1, ddof=1, keepdims=True) + 1e-4, rewards.std(1, keepdims=True) + 1e-8
    inputs["advantages"] *= torch.tensor(np.broadcast_to(sizes[0] / sizes[1], rewards.shape).ravel()).float()
    assert advantages_of(batch) == pytest.approx(inputs["advantages"].tolist(), rel=1e-4, abs=1e-6)
    assert_same(trainer, batch, trl, [trl.compute_loss(trl.model, inputs)])
