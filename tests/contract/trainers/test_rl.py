"""GRPO, GSPO and PPO through real servers: they learn, and what they say of ratios, critics and roles is so."""

import itertools

import numpy as np
import openai
import pytest

from farstep.trainers import GRPOTrainer, GSPOTrainer, PPOTrainer, RLTrainer, Trainer, TrainerError
from farstep.trainers.rl.grpo import with_advantage
from farstep.trainers.trajectory import TrajectoryDataset
from tests.support.trainees import Recorder, rows, settings

PROMPTS = [{"prompt": f"{number}+{number}?"} for number in (12, 25, 38, 47, 51, 64, 76, 93)]


def ones(completion):
    """The share of an answer that is the digit 1: one in seven of what the model says to additions."""
    return completion.count("1") / max(len(completion), 1)


def rl_settings(output_dir, **changes):
    changes = {"optimizer": {"lr": 1e-2}, "batch_size": 8, "max_steps": 8, **changes}
    changes["rl"] = {"group_size": 8, **changes.get("rl", {})}
    changes["sampling"] = {"max_tokens": 4, "ignore_eos": True, **changes.get("sampling", {})}
    return settings(output_dir, **changes)


def fit(service, config, *, trainer=GRPOTrainer, data=PROMPTS, reward=ones, **options):
    events = Recorder()
    made = trainer(config, client=service, train_data=data, reward_fn=reward, event_sinks=[events], **options)
    return made.fit(), events


@pytest.mark.parametrize(
    ("trainer", "steps", "rl"),
    [(GRPOTrainer, 8, {}), (GSPOTrainer, 8, {}), (PPOTrainer, 12, {"critic": {"warmup_steps": 2, "lr": 1e-2}})],
)
def test_rewards_rise(service, tmp_path, trainer, steps, rl):
    """O11, R16: from 0.2 to about 0.8 on an idle machine and on a busy one: everything is seeded."""
    _, events = fit(service, rl_settings(tmp_path, rl=rl, max_steps=steps), trainer=trainer)
    rewards = events.values("rollout/reward_mean")
    assert np.mean(rewards[:2]) < 0.3
    assert np.mean(rewards[-2:]) > 0.5
    versions = events.values("rollout/policy_version_min")
    assert versions == sorted(set(versions)) or trainer is PPOTrainer  # each rollout is of the newest weights
    if trainer is PPOTrainer:
        assert versions == [1, 1, 1, *range(2, 11)]


def test_prompts_that_leave_no_room_fail_a_run_that_could_learn_nothing(service, tmp_path):
    """What was sampled of nothing is no run that has completed; the error says what was wrong with the samples."""
    with pytest.raises(
        TrainerError, match=r"nothing could be learnt: 32 samples: prompt too long \(.*max_prompt_length"
    ):
        fit(service, rl_settings(tmp_path), data=[{"prompt": "word " * 3000} for _ in range(4)])
    result, _ = fit(service, rl_settings(tmp_path, name="flat", max_steps=4, epochs=2, rl={"drop_zero_variance": True}),
                    reward=lambda completion: 1.0)  # fmt: skip
    assert result.steps == 0  # that no reward differs is no fault


def test_verls_names_train(service, tmp_path):
    """O11: Orbiter's VeRLConfig, as it is."""
    config = {
        "algorithm": "grpo", "rollout_batch_size": 4, "ppo_epochs": 2, "kl_coeff": 0.1, "clip_range": 0.2,
        "gamma": 1.0, "lam": 0.95, "model_name": "farstep/tiny", "max_prompt_length": 64, "max_response_length": 4,
        "epochs": 1, "learning_rate": 1e-2, "output_dir": str(tmp_path),
    }  # fmt: skip
    result, events = fit(service, config)
    assert result.steps == 4  # 8 prompts, 2 passes
    assert "kl_ref" in events.of("log")[-1]
    assert events.of("log")[-1]["rollout/funnel/trained"] == 32


def state_of(client, rows):
    output = client.forward([row.to_datum(targets="all") for row in rows]).result()
    return np.concatenate([each["logprobs"].to_numpy() for each in output.loss_fn_outputs])


def test_while_the_critic_warms_up_the_policy_stays_as_it_is_to_the_bit(service, tmp_path):
    probe = rows(3)
    seen = []
    rl = {"critic": {"warmup_steps": 2, "lr": 1e-2}}
    trainer = PPOTrainer(
        rl_settings(tmp_path, max_steps=3, rl=rl, checkpoint=[]), client=service, train_data=PROMPTS, reward_fn=ones,
        callbacks=[{"on_log": lambda event: look()}],
    )  # fmt: skip

    def look():
        values = np.concatenate(trainer.score_values("critic", probe))
        seen.append((state_of(trainer.client, probe), values, trainer.client.step, trainer.global_step))

    with trainer:
        trainer.validate()
        trainer.init()
        look()
        assert not seen[0][1].any()  # a fresh head says 0
        trainer.train()
    logprobs, values, steps, counted = zip(*seen, strict=True)
    assert (steps, counted) == ((0, 0, 0, 1), (0, 1, 2, 3))
    np.testing.assert_array_equal(logprobs[1], logprobs[0])
    np.testing.assert_array_equal(logprobs[2], logprobs[0])
    assert np.abs(logprobs[3] - logprobs[0]).max() > 1e-4
    for before, after in itertools.pairwise(values):
        assert np.abs(after - before).max() > 1e-5


@pytest.mark.parametrize("trainer", [GRPOTrainer, GSPOTrainer])
def test_in_the_second_pass_ratios_are_real(service, tmp_path, trainer):
    config = rl_settings(tmp_path, max_steps=3, optimizer={"lr": 3e-2}, rl={"updates_per_rollout": 3})
    _, events = fit(service, config, trainer=trainer)
    name = "ratio" if trainer is GRPOTrainer else "sequence_ratio"
    first, second, third = events.values(name)
    assert first == pytest.approx(1, abs=1e-4)  # the sampler's numbers are the trainer's but for fp32
    assert abs(second - 1) > 1e-3 < abs(third - 1)
    fractions = events.values("clip_fraction")
    assert fractions[2] > 0
    assert events.values("rollout/policy_version_min") == [1, 1, 1]


def test_max_steps_may_end_a_run_between_two_passes(service, tmp_path):
    config = rl_settings(tmp_path, batch_size=1, max_steps=3, eval_interval=3, rl={"updates_per_rollout": 2})
    result, events = fit(service, config, test_data=PROMPTS[:2])
    assert result.steps == events[0]["total_steps"] == 3
    assert len(events.of("rollout")) == 2
    assert events.values("step", "eval") == events.values("step", "checkpoint") == [3]


def test_the_formula_here_is_the_workers_loss(service, tmp_path):
    """Dual clipping that never clips, computed on this machine, against the named loss; also in a second pass."""
    config = rl_settings(tmp_path, max_steps=4, rl={"updates_per_rollout": 2, "kl_coef": 0.1})
    _, named = fit(service, config)
    config = {**config, "name": "own", "rl": {**config["rl"], "dual_clip": 1e6}}
    _, own = fit(service, config)
    for name in ("loss", "grad_norm", "ratio", "kl_ref", "clip_fraction"):
        # fp32: two passes instead of one; Adam enlarges what differs
        assert own.values(name) == pytest.approx(named.values(name), rel=2e-3, abs=1e-5), name
    assert own.values("clip_fraction_lower") == [0] * 4
    references = named.values("kl_ref")
    assert references[0] == pytest.approx(0, abs=1e-7)  # the reference is what the run began with
    assert references[-1] > 1e-4


def test_with_ratios_of_one_it_is_reinforce(service, tmp_path):
    """AReno's losses: the gradient of every pass is that of the first, −Σ A·∇p."""
    config = rl_settings(tmp_path, max_steps=1, optimizer={"lr": 0.0, "grad_clip": 0})
    _, sampled = fit(service, config)
    _, unit = fit(service, {**config, "name": "unit", "rl": {"group_size": 8, "ratio": "unit"}})
    assert unit.values("grad_norm") == pytest.approx(sampled.values("grad_norm"), rel=1e-4)
    assert "clip_fraction" not in unit.of("log")[0]
    config = {**config, "name": "far", "max_steps": 2, "optimizer": {"lr": 3e-2, "grad_clip": 0}}
    config["rl"] = {"group_size": 8, "updates_per_rollout": 2}
    _, clipped = fit(service, config)
    _, unit = fit(service, {**config, "name": "far-unit", "rl": {**config["rl"], "ratio": "unit"}})
    assert clipped.values("grad_norm")[1] != pytest.approx(unit.values("grad_norm")[1], rel=1e-2)


def test_old_logprobs_are_the_trainers_where_sampling_is_of_another_distribution(service, tmp_path):
    """At temperature 2 what was sampled with is no probability of the model; with the trainer's own, ratios are 1."""
    config = rl_settings(tmp_path, max_steps=1, sampling={"temperature": 2.0})
    _, events = fit(service, config)
    log = events.of("log")[0]
    assert log["ratio"] == pytest.approx(1, abs=1e-5)
    assert log["ratio_max"] == pytest.approx(1, abs=1e-4)


def test_groups_without_a_difference_are_zeros_or_dropped_and_counted(service, tmp_path):
    def of_some(prompt):
        return 1.0 if prompt in ("12+12?", "25+25?") else next(turn)

    turn = iter(np.linspace(0, 1, 1000))
    config = rl_settings(tmp_path, batch_size=8, max_steps=1)
    _, kept = fit(service, config, reward=of_some)
    assert kept.values("zero_advantage_fraction") == [0.25]
    assert kept.values("num_rows") == [64]
    config = {**config, "name": "dropped", "rl": {"group_size": 8, "drop_zero_variance": True}}
    _, dropped = fit(service, config, reward=of_some)
    log = dropped.of("log")[0]
    assert (log["num_rows"], log["rollout/dropped/zero_variance"]) == (48, 16)
    assert dropped.of("rollout")[0]["funnel"]["trained"] == 48
    result, events = fit(service, {**config, "name": "all"}, reward=lambda completion: 1.0)
    assert (result.steps, events.of("log")) == (0, [])  # a batch with nothing to learn is no step
    assert events.of("rollout")[0]["dropped"] == {"zero_variance": 64}
    cut = {**config, "name": "cut", "rl": {"group_size": 8, "drop_cut": True}}  # every answer is, at four tokens
    result, cut_events = fit(service, cut)
    assert (result.steps, cut_events.of("rollout")[0]["dropped"]) == (0, {"cut": 64})
    assert events[-1]["type"] == "completed"


@pytest.mark.parametrize(("trainer", "rl"), [(GRPOTrainer, {}), (PPOTrainer, {"critic": {"warmup_steps": 1}})])
def test_a_run_in_pieces_is_the_run_in_one(service, tmp_path, trainer, rl):
    """T13 of RL: data, draws, policy and critic go on.

    On a quiet machine to the bit. On a busy one requests meet in other batches of the sampler, which moves fp32 sums.
    """
    resumed = [{"type": "state", "save_every_n_steps": 1, "auto_resume": True, "keep_last": 1}]
    rl = {**rl, "event_rows": 2}
    config = rl_settings(tmp_path / "whole", batch_size=3, max_steps=4, rl=rl, checkpoint=resumed)
    _, whole = fit(service, config, trainer=trainer)
    config = {**config, "output_dir": str(tmp_path / "cut"), "exit_iteration_this_run": 2}
    found = []
    for _ in range(2):
        result, events = fit(service, config, trainer=trainer)
        found.append(events)
    assert result.steps == 4
    names = ["rollout/reward_mean", "rollout/logprob_mean", "grad_norm"]
    names += ["critic/grad_norm", "critic/loss"] if trainer is PPOTrainer else []
    for name in names:
        pieces = found[0].values(name) + found[1].values(name)
        assert pieces == pytest.approx(whole.values(name), rel=1e-3, abs=1e-6), name
    last, undisturbed = found[1].of("rollout")[-1]["rows"], whole.of("rollout")[-1]["rows"]
    assert [row["tokens"] for row in last] == [row["tokens"] for row in undisturbed]


def test_rollouts_run_ahead_of_training_as_far_as_they_may(service, tmp_path):
    config = rl_settings(tmp_path, batch_size=1, max_steps=6, rl={"max_staleness": 1})
    _, events = fit(service, config)
    versions = events.values("rollout/policy_version_min")
    # batch n is sampled while batch n − 1 is trained on, so its weights are those after batch n − 2
    assert versions == [1, 1, 2, 3, 4, 5]
    ratios = events.values("kl_k3")
    assert ratios[0] < 1e-8 < 1e-6 < max(ratios)  # off-policy, and known to be


def test_rollouts_run_ahead_across_the_border_of_an_epoch(service, tmp_path):
    """Epochs of two batches: the same versions as without borders, a checkpoint at each, and no rollout too many."""
    every = [{"type": "state", "save_every_n_epochs": 1, "keep_last": 1}]
    settings = {"batch_size": 1, "max_steps": 6, "checkpoint": every, "rl": {"max_staleness": 1}}
    config = rl_settings(tmp_path, **settings)
    _, events = fit(service, config, data=PROMPTS[:2])
    assert events.values("rollout/policy_version_min") == [1, 1, 2, 3, 4, 5]
    assert len(events.of("rollout")) == 6
    assert events.values("step", "checkpoint") == [2, 4, 6]
    _, again = fit(service, config | {"name": "again"}, data=PROMPTS[:2])
    for name in ("rollout/logprob_mean", "grad_norm"):  # see above: a busy machine moves fp32 sums
        assert again.values(name) == pytest.approx(events.values(name), rel=1e-3, abs=1e-6), name


def test_cancelling_leaves_no_rollout_behind(service, tmp_path):
    """With rollouts on other threads: the run ends, and the next one has the servers to itself."""
    config = rl_settings(tmp_path, batch_size=1, max_steps=8, rl={"max_staleness": 2})
    trainer = GRPOTrainer(
        config, client=service, train_data=PROMPTS, reward_fn=ones,
        callbacks=[{"on_log": lambda event: trainer.cancel("enough")}],
    )  # fmt: skip
    result = trainer.fit()
    assert trainer.state == "cancelled"
    assert result.steps < 8


async def warm_agent(ctx, batch):
    """Asks with a temperature of its own, as agents like to."""
    async with openai.AsyncOpenAI(base_url=ctx.base_url, api_key=ctx.api_key, max_retries=0) as client:
        messages = [{"role": "user", "content": batch.item.prompt}]
        extra = {"ignore_eos": True}
        answer = await client.chat.completions.create(
            model="m", messages=messages, temperature=2.0, max_tokens=4, extra_body=extra
        )
    return ones(answer.choices[0].message.content) if batch.item.record.get("is_scored", True) else None


def test_agents_that_ask_with_a_temperature_of_their_own(service, tmp_path):
    """Their log-probabilities are none of the model's: the trainer's own stand for them. What was said is kept."""
    config = rl_settings(tmp_path, batch_size=2, max_steps=3, rl={"keep_rollouts": "tokens", "max_staleness": 1})
    _, events = fit(service, config, data=PROMPTS[:3], reward=None, agent=warm_agent)
    assert events.of("log")[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert events.of("log")[0]["ratio_max"] == pytest.approx(1, abs=1e-4)
    kept = sorted((tmp_path / config["name"] / "rollouts").iterdir())
    assert [each.name for each in kept] == [f"epoch-00{e}-batch-00000{b}.jsonl" for e, b in ((0, 0), (0, 1), (1, 0))]
    items = TrajectoryDataset.from_json(kept[0])
    assert len(items) == 16
    assert np.mean([item.score for item in items]) == pytest.approx(events.values("rollout/reward_mean")[0])
    row = items[0].metadata["rows"][0]
    assert len(row["tokens"]) == len(row["logprobs"]) == len(row["loss_mask"])
    assert items[0].messages[-1]["role"] == "assistant"
    assert {item.metadata["step"] for item in items} == {0}


def test_an_agent_without_a_reward_is_told_and_trains_nothing(service, tmp_path):
    data = [{"prompt": "1+1?"}, {"prompt": "2+2?", "is_scored": False}]
    config = rl_settings(tmp_path, batch_size=2, max_steps=1)
    with pytest.raises(TrainerError, match=r"8 of 16 samples have no reward, the first is sample 0 of prompt [01]"):
        fit(service, config, data=data, reward=None, agent=warm_agent)


def test_evaluation_is_by_generation(service, tmp_path):
    test_data = [{"prompt": f"{number}+11?"} for number in (13, 24, 57)]
    config = rl_settings(tmp_path, max_steps=2, eval_interval=1, sample_log_count=2, early_stopping={
        "metric": "eval/reward_mean", "mode": "max", "threshold": 0.99})  # fmt: skip
    result, events = fit(service, config, test_data=test_data)
    assert events.values("step", "eval") == [1, 2]
    assert events.values("eval/scored", "eval") == [3, 3]
    assert result.accuracy == events.values("eval/reward_mean", "eval")[-1]
    assert [each["prompt"] for each in events.of("eval")[0]["samples"]] == ["13+11?", "24+11?"]
    with GRPOTrainer(config | {"name": "bare"}, client=service, train_data=PROMPTS, reward_fn=ones) as trainer:
        assert trainer.evaluate([]).steps == 0
        before = trainer.evaluate(test_data)
        assert before.extra == trainer.evaluate(test_data).extra  # the same draws
        assert before.accuracy == before.extra["eval/reward_mean"]


def test_an_algorithm_of_ones_own(service, tmp_path):
    """R21: a class with a name is an algorithm, for configurations too."""

    class Ranked(RLTrainer):
        name = "ranked"
        loss_fn = "importance_sampling"
        loss_inputs = ("logprobs", "advantages")

        def advantages(self, rollout):
            order = np.argsort(np.argsort([row.reward for row in rollout.rows], kind="stable"), kind="stable")
            middle = (len(order) - 1) / 2
            return [with_advantage(row, (place - middle) / middle)
                    for row, place in zip(rollout.rows, order, strict=True)]  # fmt: skip

    try:
        assert "ranked" in Trainer.names()
        config = rl_settings(tmp_path, type="ranked", max_steps=6)
        result, events = fit(service, config, trainer=Trainer.get("ranked"))
        assert result.steps == 6
        rewards = events.values("rollout/reward_mean")
        assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.04
    finally:
        Trainer._classes.pop("ranked")
