"""Direct rollouts against real servers: what is sampled, from which weights, and that the numbers are the trainer's."""

import asyncio
import logging
import time

import numpy as np
import pytest

import farstep
from farstep import AdamParams, Datum
from farstep.rollout import AgentBatch, LossMaskPolicy, RewardError, RolloutSession, SamplingParams
from farstep.trainers.errors import RolloutError
from farstep.trainers.sequence import aligned

CHAT = [{"role": "user", "content": "12+30?"}]
PROMPTS = ["The first", CHAT, [{"role": "system", "content": "Be"}, *CHAT]]
# Of the trainer and the sampler in fp32 on a CPU: docs/sampling.md says about 1e-5.
TOLERANCE = 1e-4


def step(run, *, publish=False):
    run.forward_backward([Datum.from_prompt_completion([1, 40, 41], [60, 61, 2])])
    run.optim_step(AdamParams(learning_rate=2e-2)).result()
    if publish:
        run.save_weights_for_sampler(f"step-{run.step}").result()


def trainer_logprobs(run, row):
    """[T] of a row under the run's present weights, 0 for token 0."""
    output = run.forward([row.to_datum(targets="all", weights=False)]).result()
    return aligned(output.loss_fn_outputs[0]["logprobs"].to_numpy())


def gaps(run, rows, *, where):
    return np.concatenate(
        [np.abs(trainer_logprobs(run, row) - row.logprobs)[np.asarray(where(row), dtype=bool)] for row in rows]
    )


def test_no_rollout_outside_the_block(run):
    session = RolloutSession(run)
    for call in (session.rollout_batch, session.rollout_token_batch):
        with pytest.raises(RuntimeError, match="not open"):
            call(["a"])
    with session, pytest.raises(RolloutError, match="open already"):
        session.__enter__()
    with pytest.raises(RolloutError, match="not open"):
        session.rollout_batch(["a"])
    with session, pytest.raises(RolloutError, match="no open proxy"):
        session.base_url  # noqa: B018
    with pytest.raises(RolloutError, match="max_runing_prompts"):
        RolloutSession(run, max_runing_prompts=3)
    with pytest.raises(RolloutError, match="TrainingClient"):
        RolloutSession("run")


def test_samples_are_the_trainers_own(run):
    """R3. The gap is printed: run with -s to see it."""
    step(run)
    with RolloutSession(run) as session:
        rollout = session.rollout_batch(PROMPTS, 3, SamplingParams(max_new_tokens=24, seed=1))
        assert [sample.item.place for sample in rollout.samples] == [(p, s) for p in range(3) for s in range(3)]
        for sample in rollout.samples:
            assert len(sample.resp_tokens) == len(sample.resp_logprobs) == sum(sample.rows[0].loss_mask)
            text = session.tokenizer.decode(sample.resp_tokens, skip_special_tokens=True)
            assert sample.record.completion == text
            assert sample.rows[0].tokens == [*sample.prompt_tokens, *sample.resp_tokens]
        gap = gaps(run, rollout.rows, where=lambda row: row.loss_mask)
        print(f"log-probabilities of {len(gap)} tokens: largest gap {gap.max():.2e}, mean {gap.mean():.2e}")
        assert gap.max() < TOLERANCE
        assert len({tuple(sample.resp_tokens) for sample in rollout.samples[:3]}) > 1


async def test_the_async_colour(run):
    async with RolloutSession(run) as session:
        rollout = await session.rollout_token_batch_async([[1, 40, 41]], 2, SamplingParams(max_new_tokens=4))
        assert len(rollout.sequences) == 2
        assert await session.refresh_async() == session.policy_version == 1
    with pytest.raises(RolloutError, match="not open"):
        await session.rollout_batch_async(["a"])


def test_a_session_samples_the_weights_of_its_beginning(run):
    """R4."""
    with RolloutSession(run) as first:
        assert first.policy_version == 1
    with RolloutSession(run) as again:
        assert again.policy_version == 1  # nothing has changed
        run.forward_backward([Datum.from_prompt_completion([1, 40, 41], [60, 61, 2])])
        run.optim_step(AdamParams(learning_rate=2e-2))  # and nobody waits for it
        with RolloutSession(run) as fresh:
            assert fresh.policy_version == 2
            ours, theirs = (s.rollout_batch([CHAT], 2, SamplingParams(seed=3)) for s in (again, fresh))
            assert {sample.policy_version for sample in ours.samples} == {1}
            assert {sample.policy_version for sample in theirs.samples} == {2}
            row = theirs.rows[0]
            assert row.metadata["policy_version"] == 2
            assert set(row.metadata["policy_versions"]) == {None, 2}
            assert gaps(run, theirs.rows, where=lambda row: row.loss_mask).max() < TOLERANCE
            assert gaps(run, ours.rows, where=lambda row: row.loss_mask).max() > 10 * TOLERANCE
        earlier = again.sampling_client
        assert again.refresh() == 2
        with pytest.raises(farstep.ClientClosedError):  # nothing is under way with it any more
            earlier.sample([1, 2])
        assert {sample.policy_version for sample in again.rollout_batch([CHAT], 2).samples} == {2}


def test_updates_in_flight_where_they_are_asked_for(run):
    with RolloutSession(run, in_flight="switch") as session, RolloutSession(run) as pinned:
        step(run, publish=True)
        run.create_sampling_client(run.list_checkpoints()[-1].path).close()
        params = SamplingParams(max_new_tokens=400, ignore_eos=True)
        assert {sample.policy_version for sample in session.rollout_batch([CHAT], 2, params).samples} == {2}
        assert {sample.policy_version for sample in pinned.rollout_batch([CHAT], 2).samples} == {1}


def test_stale_groups_are_sampled_again(run):
    """The agent trains while it samples, as an asynchronous trainer does: the first prompt's group falls behind."""
    trained = []

    def reward(record):
        if record.metadata["prompt_index"] == 0 and not trained:
            trained.append(True)
            step(run, publish=True)
            step(run, publish=True)
        return 1.0

    with RolloutSession(run, max_staleness=1, max_running_rewards=1) as session:
        rollout = session.rollout_batch(["a", "b"], 2, SamplingParams(max_new_tokens=3), reward_fn=reward)
        assert {sample.policy_version for sample in rollout.samples} == {3}
        assert rollout.stats.num_resampled == 4
        assert rollout.metrics()["rollout/resampled"] == 4
        step(run, publish=True)
        assert session.stale_groups(rollout) == []  # one behind is not too old
        step(run, publish=True)
        assert [group.prompt_index for group in session.stale_groups(rollout)] == [0, 1]
        assert {sample.policy_version for sample in session.freshened(rollout).samples} == {5}

    def always(record):
        step(run, publish=True)
        return 1.0

    with RolloutSession(run, max_staleness=0, max_resamples=2) as session:
        rollout = session.rollout_batch(["a"], 1, SamplingParams(max_new_tokens=3), reward_fn=always)
        assert (rollout.rows, rollout.samples[0].reason) == ([], "stale")
    with run.fresh_sampling_client() as pinned, pytest.raises(RolloutError, match="max_staleness"):
        RolloutSession(pinned, max_staleness=1)


def test_every_parameter_tells(run):
    """R5."""
    with RolloutSession(run) as session:

        def sampled(n=1, prompts=(CHAT,), **params):
            params = {"max_new_tokens": 30, "seed": 5, **params}
            return session.rollout_batch(list(prompts), n, SamplingParams(**params)).samples

        def tokens(**params):
            return [sample.resp_tokens for sample in sampled(n=8, ignore_eos=True, **params)]

        free = tokens()
        assert free == tokens()
        assert free != tokens(seed=6)
        assert len(set(map(tuple, free))) > 1
        for narrow in ({"greedy": True}, {"temperature": 0.001}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
            assert len(set(map(tuple, tokens(**narrow)))) == 1, narrow
        assert all(len(each) == 30 for each in free)
        assert [len(each) for each in tokens(max_new_tokens=3)] == [3] * 8
        stopped = sampled(stop_token_ids=[free[0][4]], ignore_eos=True)[0]
        assert stopped.resp_tokens == free[0][: free[0].index(free[0][4]) + 1]
        text = session.tokenizer.decode(free[0], skip_special_tokens=True)
        stop = next(letter for letter in text[4:] if letter not in "<|im_end|>" and letter not in text[:4])
        cut = sampled(stop=[stop, "never"], ignore_eos=True, stop_token_ids=[1023])[0]
        assert cut.record.completion == text[: text.index(stop)]
        assert cut.resp_tokens == free[0][: len(cut.resp_tokens)]
        assert cut.finish_reason == "stop"
        assert sampled(greedy=True)[0].finish_reason == "stop"
        special = sampled(greedy=True, skip_special_tokens=False)[0]
        assert special.record.completion.endswith("<|im_end|>")
        prompt_len = len(stopped.prompt_tokens)
        assert len(sampled(max_context_len=prompt_len + 2, ignore_eos=True)[0].resp_tokens) == 2
        full = sampled(max_context_len=prompt_len)[0]
        assert (full.resp_tokens, full.finish_reason, full.outcome) == ([], "length", "dropped")
        long, short = sampled(prompts=(CHAT, "a"), max_prompt_len=prompt_len - 1)
        assert (long.reason, short.outcome) == ("prompt_too_long", "ok")
    for wrong in ({"max_new_tokens": 0}, {"top_p": 2.0}, {"temperature": -1}, {"max_prompt_len": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SamplingParams(**wrong)


def test_what_was_given_can_be_trained(run):
    """Then it has the log-probabilities that the policy has for it."""
    step(run)
    policy = LossMaskPolicy(user_prompt=True, system_prompt=True)
    with RolloutSession(run, loss_mask_policy=policy) as session:
        rollout = session.rollout_batch([PROMPTS[2]], 1, SamplingParams(max_new_tokens=5))
    (row,) = rollout.rows
    assert sum(row.loss_mask) > 5 + 5
    assert gaps(run, [row], where=lambda row: row.loss_mask).max() < TOLERANCE


def test_rewards_of_direct_rollouts(run, caplog):
    with RolloutSession(run, max_row_len=25) as session:
        with pytest.raises(
            RewardError, match=r"no reward for 2 records: prompt 0, sample 0: .*nan is not finite"
        ) as no:
            session.rollout_batch(["a", "b"], 2, reward_fn=lambda r: [float("nan"), 1.0][r.metadata["prompt_index"]])
        assert no.value.places == [(0, 0), (0, 1)]
        params = SamplingParams(max_new_tokens=40, ignore_eos=True, seed=1)
        records = [{"answer": "x"}, {"answer": "y"}, {"answer": "y"}]
        prompts = ["a", "b", "The first of them is longer than these others are, by some tokens"]
        with caplog.at_level(logging.WARNING, "farstep"):
            rollout = session.rollout_batch(
                prompts,
                2,
                SamplingParams(max_new_tokens=20, ignore_eos=True),
                records=records,
                reward_fn=lambda completion, answer: float(answer == "y") * len(completion),
            )
    assert [group.rewards[0] > 0 for group in rollout.groups] == [False, True, True]
    assert [sample.reason for sample in rollout.samples] == ["", "", "", "", "too_long", "too_long"]
    over_long = rollout.stats.over_long
    assert (over_long.limit, over_long.num_dropped, len(over_long.longest)) == (25, 2, 5)
    assert "2 samples are over 25 tokens" in caplog.text
    kept = rollout.with_signal()
    assert {sample.prompt_index for sample in kept.samples if sample.rows} <= {1}
    assert kept.stats.dropped["zero_variance"] >= 2
    assert kept.stats.funnel.trained == len(kept.rows)
    assert params.seed == 1


def test_samples_without_a_reward_are_left_out_where_that_is_wanted(run, caplog):
    """A judge that is away, says nothing finite or never answers costs its own samples alone."""

    def judge(record):
        match record.metadata["prompt_index"], record.metadata["sample_index"]:
            case 0, 0:
                raise ConnectionError("the judge is away")
            case 0, 1:
                return float("inf")
            case 1, 0:
                time.sleep(30)
        return 1.0

    settings = {"on_reward_error": "drop", "reward_timeout_s": 0.5, "sampling_params": SamplingParams(max_new_tokens=2)}
    with RolloutSession(run, **settings) as session, caplog.at_level(logging.WARNING, "farstep"):
        rollout = session.rollout_batch(["a", "b"], 2, reward_fn=judge)
    assert [(s.outcome, s.reason, s.reward, len(s.rows)) for s in rollout.samples] == [
        *[("failed", "reward", None, 0)] * 3, ("ok", "", 1.0, 1),
    ]  # fmt: skip
    assert rollout.stats.failed == {"reward": 3}
    assert "no reward for 3 records: prompt 0, sample 0: ConnectionError: the judge is away" in caplog.text
    assert "prompt 1, sample 0: TimeoutError: it took more than 0.5 s" in caplog.text
    with RolloutSession(run) as session, pytest.raises(RewardError, match="nan is not finite") as no:
        session.run_agents(lambda ctx, batch: float("nan"), AgentBatch([{}], ["x"]))  # an agent's own reward, too
    assert no.value.places == [(0, 0)]


def test_no_more_run_at_once_than_may(run):
    """Agents and rewards, each up to their own limit and no further."""

    class Room:
        def __init__(self):
            self.now = self.most = 0

        async def __call__(self, *given):
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(20):
                await asyncio.sleep(0.005)
            self.now -= 1
            return 1.0

    agents, rewards = Room(), Room()
    with RolloutSession(run, max_running_prompts=3, max_running_rewards=2) as session:
        session.run_agents(agents, AgentBatch([{}] * 4, ["x"] * 4, n_samples=3))
        session.rollout_batch(["a"], 8, SamplingParams(max_new_tokens=2), reward_fn=rewards)
    assert (agents.most, rewards.most) == (3, 2)


def test_one_group_that_fails_loses_no_other(run, monkeypatch, caplog):
    sample = farstep.SamplingClient.sample_async

    async def faulty(self, prompt, *args, **kwargs):
        if len(prompt) == 2:
            raise farstep.TransportError("gone")
        return await sample(self, prompt, *args, **kwargs)

    with RolloutSession(run) as session:
        monkeypatch.setattr(farstep.SamplingClient, "sample_async", faulty)
        rollout = session.rollout_token_batch([[1, 2], [1, 2, 3]], 2)
        assert [sample.outcome for sample in rollout.samples] == ["failed", "failed", "ok", "ok"]
        assert rollout.stats.failed == {"model_request": 2}
        with pytest.raises(RolloutError, match=r"all 1 samples failed; the first: TransportError: gone"):
            session.rollout_token_batch([[1, 2]])
        with pytest.raises(farstep.InvalidInputError, match="prompt"):
            session.rollout_token_batch([[1, 10**6, 3]])
        with caplog.at_level(logging.WARNING, "farstep"):
            rollout = session.rollout_token_batch([[1, 10**6, 3], [1] * 3000, [1, 2, 3]])
        assert [sample.outcome for sample in rollout.samples] == ["failed", "failed", "ok"]
        assert "prompt 0, sample 0 cannot be sampled, and is left out: prompt" in caplog.text


def test_batches_that_cannot_be(run):
    with pytest.raises(RolloutError, match=r"records\[1\]: has no 'prompt', it has 'question'"):
        AgentBatch.from_records([{"prompt": "a"}, {"question": "b"}])
    with RolloutSession(run) as session:
        with pytest.raises(RolloutError, match=r"prompts\[1\]: is a int, neither"):
            session.rollout_batch(["a", 3])
        with pytest.raises(RolloutError, match="2 records for 1 prompts"):
            session.rollout_batch(["a"], records=[{}, {}])
        with pytest.raises(RolloutError, match="n_samples"):
            session.rollout_batch(["a"], 0)
