"""The real SDK against a real sampler: every call of `SamplingClient`, the gate, and agreement with the trainer."""

import asyncio
import json
import pickle

import numpy as np
import pytest

import farstep
from farstep import AdamParams, Datum, ModelInput, SamplingParams

PROMPT = [1, 40, 41, 42, 43]


def train(trainer, steps=1, learning_rate=2e-2):
    for index in range(steps):
        trainer.forward_backward([Datum.from_prompt_completion(PROMPT, [60 + index, 61, 62, 2])])
        trainer.optim_step(AdamParams(learning_rate=learning_rate))


def trainer_logprobs(trainer, tokens):
    """Log-probabilities of tokens[1:] under the trainer's present weights."""
    data = [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]
    return trainer.forward(data).result().loss_fn_outputs[0]["logprobs"].to_numpy()


@pytest.fixture
def base(service):
    return service.create_sampling_client("farstep/tiny")


def test_a_sample_has_all_its_parts(base):
    result = base.sample(ModelInput.from_ints(PROMPT), 3, SamplingParams(max_tokens=5, seed=1)).result()
    assert len(result.sequences) == 3
    assert result.policy_version == 0
    assert result.prompt_logprobs is None
    for sequence in result.sequences:
        assert 1 <= len(sequence.tokens) == len(sequence.logprobs) <= 5
        assert sequence.stop_reason in ("stop", "length")
        assert max(sequence.logprobs) <= 0


def test_same_seed_same_tokens_whatever_else_is_there(base):
    params = SamplingParams(max_tokens=12, seed=5, temperature=1.0)
    prompt = ModelInput.from_ints(PROMPT)
    alone = base.sample(prompt, 2, params).result()
    others = [base.sample(ModelInput.from_ints([1, 50 + i]), 3, SamplingParams(max_tokens=20)) for i in range(20)]
    crowded = base.sample(prompt, 2, params).result()
    assert [sequence.tokens for sequence in crowded.sequences] == [sequence.tokens for sequence in alone.sequences]
    assert alone.sequences[0].tokens != alone.sequences[1].tokens
    for other in others:
        other.result()


def test_greedy(base):
    params = SamplingParams(max_tokens=8, temperature=0)
    first, second = (base.sample(ModelInput.from_ints(PROMPT), 1, params).result().sequences[0] for _ in range(2))
    assert first == second


def test_stop_token_and_stop_string_are_included(service, base):
    tokenizer = base.get_tokenizer()
    prompt = ModelInput.from_ints(PROMPT)
    params = SamplingParams(max_tokens=30, seed=3)
    tokens = base.sample(prompt, 1, params).result().sequences[0].tokens
    stop = tokens[len(tokens) // 2]
    cut = base.sample(prompt, 1, SamplingParams(max_tokens=30, seed=3, stop=[stop])).result().sequences[0]
    assert cut.stop_reason == "stop"
    assert list(cut.tokens) == list(tokens[: list(tokens).index(stop) + 1])

    text = tokenizer.decode(tokens[:-1])
    piece = text[len(text) // 2 : len(text) // 2 + 2]
    cut = base.sample(prompt, 1, SamplingParams(max_tokens=30, seed=3, stop=piece)).result().sequences[0]
    assert cut.stop_reason == "stop"
    decoded = tokenizer.decode(cut.tokens)
    assert piece in decoded
    assert piece not in tokenizer.decode(cut.tokens[:-1])


def test_logprobs_agree_with_the_trainer(trainer):
    train(trainer, 3)
    sampler = trainer.save_weights_and_get_sampling_client()
    result = sampler.sample(
        ModelInput.from_ints(PROMPT), 4, SamplingParams(max_tokens=16, seed=2), include_prompt_logprobs=True
    ).result()
    for sequence in result.sequences:
        expected = trainer_logprobs(trainer, [*PROMPT, *sequence.tokens])
        assert result.prompt_logprobs[0] is None
        sampled = [*result.prompt_logprobs[1:], *sequence.logprobs]
        assert np.abs(np.array(sampled) - expected).mean() <= 1e-5


def test_compute_logprobs_agrees_with_the_trainer(trainer):
    train(trainer, 2)
    sampler = trainer.save_weights_and_get_sampling_client()
    tokens = [1, 40, 50, 60, 70, 2]
    logprobs = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()
    assert logprobs[0] is None
    np.testing.assert_allclose(logprobs[1:], trainer_logprobs(trainer, tokens), atol=1e-5)


def test_logprobs_of_many_prompts_agree_with_the_trainer(trainer):
    train(trainer, 2)
    sampler = trainer.save_weights_and_get_sampling_client()
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, 900, 1 + int(generator.integers(0, 120))).tolist() for _ in range(40)] + [[7]]
    found = [future.result() for future in sampler.compute_logprobs_batch(prompts)]
    data = [Datum(ModelInput.from_ints(p[:-1]), {"target_tokens": p[1:]}) for p in prompts if len(p) > 1]
    expected = iter(trainer.forward(data).result().loss_fn_outputs)
    for prompt, logprobs in zip(prompts, found, strict=True):
        assert logprobs[0] is None
        if len(prompt) > 1:
            # Random tokens: fp32 has steps of 2e-6 at their log-probabilities around -20, hence a relative part.
            np.testing.assert_allclose(logprobs[1:], next(expected)["logprobs"].to_numpy(), atol=1e-5, rtol=2e-6)
        else:
            assert len(logprobs) == 1


def test_guided(base):
    tokenizer = base.get_tokenizer()
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    prompt = ModelInput.from_ints(PROMPT)
    for params, texts in (
        (SamplingParams(max_tokens=60, seed=1, json_schema=schema), None),
        (SamplingParams(max_tokens=60, seed=1, regex="ab|cd"), {"ab", "cd"}),
        (SamplingParams(max_tokens=60, seed=1, choice=["left", "right"]), {"left", "right"}),
        (SamplingParams(max_tokens=60, seed=1, grammar='root ::= "x" | "yz"'), {"x", "yz"}),
    ):
        for sequence in base.sample(prompt, 4, params).result().sequences:
            if sequence.stop_reason == "length":
                continue
            text = tokenizer.decode(sequence.tokens[:-1])
            assert text in texts if texts else json.loads(text) in ({"n": 1}, {"n": 2})
    with pytest.raises(farstep.RemoteOpError, match=r"params\.json_schema.*uniqueItems"):
        base.sample(prompt, 1, SamplingParams(json_schema={"uniqueItems": True})).result()


def test_temperature_is_in_the_logprobs(base):
    prompt = ModelInput.from_ints(PROMPT)
    cold = base.sample(prompt, 1, SamplingParams(max_tokens=1, temperature=0.25, seed=1), topk_logprobs=3).result()
    token = cold.sequences[0].tokens[0]
    warm = base.compute_logprobs(ModelInput.from_ints([*PROMPT, token])).result()[-1]
    assert cold.sequences[0].logprobs[0] != pytest.approx(warm, abs=1e-3)


def test_topk(base):
    result = base.sample(
        ModelInput.from_ints(PROMPT), 1, SamplingParams(max_tokens=4, temperature=0), topk_prompt_logprobs=3,
        topk_logprobs=2, include_prompt_logprobs=True,
    ).result()  # fmt: skip
    assert len(result.topk_prompt_logprobs) == len(PROMPT)
    assert result.topk_prompt_logprobs[0] is None
    for position in range(1, len(PROMPT)):
        top = dict(result.topk_prompt_logprobs[position])
        assert len(top) == 3
        if PROMPT[position] in top:
            assert top[PROMPT[position]] == pytest.approx(result.prompt_logprobs[position], abs=1e-5)
    for token, logprob, top in zip(
        result.sequences[0].tokens, result.sequences[0].logprobs, result.sequences[0].topk_logprobs, strict=True
    ):
        assert top[0][0] == token  # greedy
        assert top[0][1] == pytest.approx(logprob, abs=1e-5)


def test_each_publication_is_served_and_old_pins_stay(trainer):
    assert trainer.policy_version == 0
    pinned = []
    for version in (1, 2, 3):
        train(trainer)
        client = trainer.save_weights_and_get_sampling_client(pin="exact")
        assert client.policy_version == trainer.policy_version == version
        tokens = [1, 44, 45, 46]
        pinned.append((client, client.compute_logprobs(ModelInput.from_ints(tokens)).result()))
    for version, (client, expected) in enumerate(pinned, start=1):
        result = client.sample(ModelInput.from_ints(PROMPT), 1, SamplingParams(max_tokens=2)).result()
        assert result.policy_version == version
        assert client.compute_logprobs(ModelInput.from_ints(tokens)).result() == expected
    assert len({tuple(logprobs[1:]) for _, logprobs in pinned}) == 3


def test_min_pin_is_served_by_a_newer_policy(trainer):
    train(trainer)
    old = trainer.save_weights_and_get_sampling_client()
    train(trainer)
    trainer.save_weights_and_get_sampling_client()
    result = old.sample(ModelInput.from_ints(PROMPT), 1, SamplingParams(max_tokens=2)).result()
    assert old.policy_version == 1
    assert result.policy_version == 2


def test_version_numbers_never_go_back(trainer):
    train(trainer)
    trainer.save_weights_for_sampler("one").result()
    path = trainer.save_state("state").result().path
    train(trainer)
    assert trainer.save_weights_for_sampler("two").result().policy_version == 2
    trainer.load_state_with_optimizer(path).result()
    assert trainer.save_weights_for_sampler("three").result().policy_version == 3
    trainer.reset(4).result()
    assert trainer.save_weights_and_get_sampling_client().policy_version == 4


def test_a_named_publication_is_a_checkpoint_to_sample_from(service, trainer):
    train(trainer, 2)
    saved = trainer.save_weights_for_sampler("kept").result()
    assert saved.path == f"bt://loops:{trainer.run_id}/sampler_weights/kept"
    expected = trainer_logprobs(trainer, PROMPT)
    train(trainer, 2)
    trainer.save_weights_and_get_sampling_client()
    for client in (trainer.create_sampling_client(saved.path), service.create_sampling_client(model_path=saved.path)):
        logprobs = client.compute_logprobs(ModelInput.from_ints(PROMPT)).result()
        np.testing.assert_allclose(logprobs[1:], expected, atol=1e-5)


def test_a_version_that_never_comes_is_a_425(pair, trainer, service):
    import httpx

    from tests.support.processes import KEY

    train(trainer)
    trainer.save_weights_and_get_sampling_client()
    body = {"prompt": {"chunks": [{"encoded_text": {"ids": PROMPT}}]}, "num_samples": 1, "run_id": trainer.run_id,
            "params": {"max_tokens": 1}, "gate_wait_s": 0.2}  # fmt: skip
    headers = {"Authorization": f"Bearer {KEY}"}
    for gate in ({"X-Min-Policy-Version": "7"}, {"X-Policy-Version": "7"}):
        response = httpx.post(f"{pair[1].url}/v1/sample", json=body, headers={**headers, **gate})
        assert response.status_code == 425
        assert float(response.headers["Retry-After"]) > 0
        assert response.json()["wanted_version"] == "7"
        assert response.json()["newest_version"] == "1"
    response = httpx.post(f"{pair[1].url}/v1/sample", json=body, headers={**headers, "X-Min-Policy-Version": "1"})
    assert response.status_code == 200
    response = httpx.post(f"{pair[1].url}/v1/sample", json=body, headers={**headers, "X-Min-Policy-Version": "x"})
    assert response.status_code == 400


def test_three_hundred_samples_in_flight(base):
    futures = [
        base.sample(ModelInput.from_ints([1, 40 + index % 50]), 1, SamplingParams(max_tokens=4, seed=index))
        for index in range(300)
    ]
    assert all(future.result(timeout=100).sequences for future in futures)


async def test_async_is_the_same_as_sync(base):
    prompt = ModelInput.from_ints(PROMPT)
    params = SamplingParams(max_tokens=6, seed=9)
    synchronous = base.sample(prompt, 2, params).result()
    asynchronous = await (await base.sample_async(prompt, 2, params))
    assert [s.tokens for s in asynchronous.sequences] == [s.tokens for s in synchronous.sequences]
    assert await (await base.compute_logprobs_async(prompt)) == base.compute_logprobs(prompt).result()
    futures = await asyncio.gather(*(base.sample_async(prompt, 1, params) for _ in range(100)))
    results = await asyncio.gather(*futures)
    assert len({tuple(result.sequences[0].tokens) for result in results}) == 1


async def test_async_publication(trainer):
    train(trainer)
    client = await trainer.save_weights_and_get_sampling_client_async()
    assert client.policy_version == 1
    again = await trainer.create_sampling_client_async((await (await trainer.save_weights_for_sampler_async("x"))).path)
    result = await (await again.sample_async(ModelInput.from_ints(PROMPT), 1, SamplingParams(max_tokens=1)))
    assert result.sequences


def test_a_client_can_be_pickled(trainer):
    train(trainer)
    client = trainer.save_weights_and_get_sampling_client(pin="exact")
    copy = pickle.loads(pickle.dumps(client))
    prompt, params = ModelInput.from_ints(PROMPT), SamplingParams(max_tokens=4, seed=1)
    assert copy.sample(prompt, 1, params).result().sequences == client.sample(prompt, 1, params).result().sequences
    assert copy.policy_version == client.policy_version


def test_base_model_and_readiness(base):
    base.ensure_ready()
    assert base.get_base_model() == "farstep/tiny"


def test_prompt_too_long_for_the_context(base):
    with pytest.raises(farstep.FarstepError, match="2048"):
        base.sample(ModelInput.from_ints([5] * 2100), 1, SamplingParams(max_tokens=1)).result()
    with pytest.raises(farstep.FarstepError, match="max_tokens"):
        base.sample(ModelInput.from_ints([5] * 2000), 1, SamplingParams(max_tokens=100)).result()
