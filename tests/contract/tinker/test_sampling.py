"""Every option of the SDK's sampling client, seen in what it does; numbers against transformers' own forward pass."""

import asyncio

import numpy as np
import pytest
import tinker
import torch
from tinker import types
from transformers import AutoModelForCausalLM

from farstep_model.embedded import model_dir

pytestmark = pytest.mark.timeout(240)

PROMPT = [5, 6, 7, 8, 9, 40, 41, 42, 43, 44, 45, 46]
TOLERANCE = 1e-5  # fp32 sums in another order; these log-probabilities are around -5
WAIT_S = 120


@pytest.fixture(scope="module")
def sampler(tinker_url, tinker_key):
    service = tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key)
    yield service.create_sampling_client(base_model="farstep/tiny").result(WAIT_S)
    service.close("success")


@pytest.fixture(scope="module")
def logprobs():
    """Of a text's tokens under the base model: row t is about token t + 1."""
    model = AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32).eval()

    def compute(tokens, temperature=1.0):
        with torch.no_grad():
            return (model(torch.tensor([tokens])).logits[0] / temperature).log_softmax(-1).numpy()

    return compute


def sample(client, prompt=PROMPT, num_samples=1, **options):
    params = {name: options.pop(name) for name in list(options) if name in types.SamplingParams.model_fields}
    params.setdefault("stop", [])
    future = client.sample(types.ModelInput.from_ints(prompt), num_samples, types.SamplingParams(**params), **options)
    return future.result(WAIT_S)


def tokens_of(response):
    return [sequence.tokens for sequence in response.sequences]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_log_probabilities_of_samples_are_after_temperature_and_of_prompts_before(sampler, logprobs, temperature):
    found = sample(sampler, num_samples=3, max_tokens=8, temperature=temperature, seed=1, include_prompt_logprobs=True)
    assert len(found.sequences) == 3
    for sequence in found.sequences:
        assert (len(sequence.tokens), sequence.stop_reason) == (8, "length")
        truth = logprobs(PROMPT + sequence.tokens, temperature)[len(PROMPT) - 1 : -1]
        expected = np.take_along_axis(truth, np.array(sequence.tokens)[:, None], 1)[:, 0]
        np.testing.assert_allclose(sequence.logprobs, expected, atol=TOLERANCE)
    assert found.prompt_logprobs[0] is None
    expected = np.take_along_axis(logprobs(PROMPT)[:-1], np.array(PROMPT[1:])[:, None], 1)[:, 0]
    np.testing.assert_allclose(found.prompt_logprobs[1:], expected, atol=TOLERANCE)


def test_candidates_of_samples_and_prompt(sampler, logprobs):
    found = sample(sampler, max_tokens=4, temperature=0.5, seed=2, topk_prompt_logprobs=3, topk_sample_logprobs=2)
    assert found.prompt_logprobs is None
    assert found.topk_prompt_logprobs[0] is None
    truth = logprobs(PROMPT)
    for position, row in enumerate(found.topk_prompt_logprobs[1:]):
        best = np.argsort(-truth[position])[:3]
        assert [token for token, _ in row] == best.tolist()
        np.testing.assert_allclose([logprob for _, logprob in row], truth[position][best], atol=TOLERANCE)
    (sequence,) = found.sequences
    truth = logprobs(PROMPT + sequence.tokens, 0.5)[len(PROMPT) - 1 : -1]
    for step, row in enumerate(sequence.topk_logprobs):
        best = np.argsort(-truth[step])[:2]
        assert [token for token, _ in row] == best.tolist()
        np.testing.assert_allclose([logprob for _, logprob in row], truth[step][best], atol=TOLERANCE)


def test_the_last_tokens_alone(sampler, logprobs):
    long = (PROMPT * 8)[:90]
    expected = np.take_along_axis(logprobs(long)[:-1], np.array(long[1:])[:, None], 1)[:, 0]
    future = sampler.compute_logprobs(types.ModelInput.from_ints(long), prompt_logprobs_last_n=4)
    found = future.result(WAIT_S)
    assert found[:-4] == [None] * 86
    np.testing.assert_allclose(found[-4:], expected[-4:], atol=TOLERANCE)
    again = sample(
        sampler, long, max_tokens=1, include_prompt_logprobs=True, prompt_logprobs_last_n=4, topk_prompt_logprobs=1
    )
    assert again.prompt_cache_hit_tokens == 80
    assert again.topk_prompt_logprobs[85] is None
    assert again.topk_prompt_logprobs[86] is not None
    whole = sampler.compute_logprobs(types.ModelInput.from_ints(long)).result(WAIT_S)
    np.testing.assert_allclose(whole[1:], expected, atol=TOLERANCE)


def test_a_prompt_as_long_as_the_context_is_scored(sampler, logprobs):
    """There is no room for the one token that the SDK asks for beside it."""
    whole = (list(range(10, 910)) * 3)[:2048]
    found = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result(WAIT_S)
    expected = np.take_along_axis(logprobs(whole)[:-1], np.array(whole[1:])[:, None], 1)[:, 0]
    np.testing.assert_allclose(found[1:], expected, atol=1e-4)  # 2,048 terms in each sum of attention


@pytest.mark.parametrize("pack", [types.TensorData.from_torch, types.TensorData.from_torch_sparse], ids=str)
def test_chosen_tokens_at_chosen_positions(sampler, logprobs, pack):
    wanted = torch.full((len(PROMPT) - 1, 3), -1, dtype=torch.int64)
    wanted[4, 1], wanted[10, 0], wanted[10, 2] = 77, 5, 300
    is_listed = pack == types.TensorData.from_torch_sparse
    target = pack(wanted, pad_value=-1) if is_listed else pack(wanted)
    assert (target.sparse_crow_indices is not None) == is_listed
    found = sample(sampler, max_tokens=1, target_prompt_logprobs=target).target_prompt_logprobs
    assert found.sparse_crow_indices == target.sparse_crow_indices
    assert found.sparse_col_indices == target.sparse_col_indices
    truth = logprobs(PROMPT)[:-1]
    expected = np.where(wanted >= 0, np.take_along_axis(truth, wanted.clamp_min(0).numpy(), 1), 0.0)
    np.testing.assert_allclose(found.to_torch().numpy(), expected, atol=TOLERANCE)


def test_alternatives_to_each_prompt_token(sampler, logprobs):
    found = sample(sampler, max_tokens=1, prompt_alt_tokens_k=50, seed=4)
    tokens, scores = found.prompt_alt_tokens.tokens.to_numpy(), found.prompt_alt_tokens.logprobs.to_numpy()
    assert tokens.shape == scores.shape == (len(PROMPT) - 1, 50)
    truth = logprobs(PROMPT)[:-1]
    np.testing.assert_allclose(scores, np.take_along_axis(truth, tokens, 1), atol=TOLERANCE)
    # On average a draw's surprise is the distribution's entropy: 550 draws whose spread is about 2 each.
    entropies = -(np.exp(truth) * truth).sum(1)
    assert abs(-scores.mean() - entropies.mean()) < 0.4
    again = sample(sampler, max_tokens=3, num_samples=2, prompt_alt_tokens_k=50, seed=4)
    np.testing.assert_array_equal(again.prompt_alt_tokens.tokens.to_numpy(), tokens)
    greedy = sample(sampler, max_tokens=1, prompt_alt_tokens_k=2, temperature=0.0).prompt_alt_tokens.tokens.to_numpy()
    assert (greedy == truth.argmax(1)[:, None]).all()


def test_stops(sampler):
    """What the SDK leaves out is the model's own end; what it says replaces that, and what matched is in the result."""
    free = sample(sampler, max_tokens=40, seed=6).sequences[0]
    assert len(free.tokens) == 40
    stop = free.tokens[9]
    first = free.tokens.index(stop)
    ended = sample(sampler, max_tokens=40, seed=6, stop=[stop]).sequences[0]
    assert (ended.tokens, ended.stop_reason) == (free.tokens[: first + 1], "stop")
    np.testing.assert_allclose(ended.logprobs, free.logprobs[: first + 1], atol=TOLERANCE)
    assert sample(sampler, max_tokens=40, seed=6, stop=[]).sequences[0].tokens == free.tokens


def test_stop_strings_and_the_models_own_end(sampler):
    base = sampler
    from farstep_model.load import load_base_model

    model = load_base_model(device="cpu")
    free = sample(base, max_tokens=40, seed=6).sequences[0].tokens
    text = model.text(free)
    middle = text[len(text) // 2 :][:3]
    for stop in (middle, [middle, "never to be seen"]):
        ended = sample(base, max_tokens=40, seed=6, stop=stop).sequences[0]
        assert ended.stop_reason == "stop"
        assert ended.tokens == free[: len(ended.tokens)]
        assert middle in model.text(ended.tokens)
        assert middle not in model.text(ended.tokens[:-1])
    eos = model.eos_token_ids[0]
    params = {"temperature": 3.0, "max_tokens": 400, "num_samples": 8, "seed": 1}
    own_end = sample(base, **params, stop=None).sequences
    assert any(s.stop_reason == "stop" and s.tokens[-1] == eos for s in own_end)
    assert all(eos not in s.tokens[:-1] for s in own_end)
    assert any(eos in s.tokens[:-1] for s in sample(base, **params).sequences)


def test_seeds_of_64_bits(sampler):
    seeds = [0, 1, 2**63, 2**64 - 1]
    drawn = [tokens_of(sample(sampler, num_samples=2, max_tokens=12, seed=seed)) for seed in seeds]
    again = [tokens_of(sample(sampler, num_samples=2, max_tokens=12, seed=seed)) for seed in seeds]
    assert drawn == again
    assert len({str(each) for each in drawn}) == len(seeds)
    assert drawn[0][0] != drawn[0][1]
    open_ones = [tokens_of(sample(sampler, max_tokens=12)) for _ in range(2)]
    assert open_ones[0] != open_ones[1]


def test_what_restricts_the_choice(sampler, logprobs):
    greedy = sample(sampler, max_tokens=6, temperature=0.0).sequences[0]
    assert greedy.tokens == sample(sampler, max_tokens=6, top_k=1, seed=9).sequences[0].tokens
    assert greedy.tokens == sample(sampler, max_tokens=6, top_p=1e-6, seed=9).sequences[0].tokens
    assert greedy.tokens[0] == logprobs(PROMPT)[-1].argmax()
    assert len(sample(sampler, (PROMPT * 200)[:2000], max_tokens=None).sequences[0].tokens) == 48


def test_sequences_have_ids_of_their_own(sampler):
    ids = [s.sequence_id for _ in range(2) for s in sample(sampler, num_samples=3, max_tokens=1).sequences]
    assert len(set(ids)) == 6
    assert all(each.startswith(sampler._sampling_session_id) for each in ids)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1.0}, "sampling_params.temperature"),
        ({"top_p": 0.0}, "sampling_params.top_p"),
        ({"max_tokens": 5000}, "sampling_params.max_tokens"),
        ({"stop": [99999]}, "sampling_params.stop"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"num_samples": 0}, "num_samples"),
        ({"topk_sample_logprobs": 1000}, "topk_sample_logprobs"),
        ({"include_prompt_logprobs": True, "prompt_logprobs_last_n": 12}, "prompt_logprobs_last_n"),
        ({"target_prompt_logprobs": types.TensorData.from_torch(torch.zeros(3, 2, dtype=torch.long))}, "target_prompt"),
    ],
    ids=str,
)
def test_a_mistake_is_a_future_that_fails_at_once_and_names_the_field(sampler, options, field):
    with pytest.raises(tinker.RequestFailedError) as caught:
        sample(sampler, **{"max_tokens": 2, **options})
    assert field in str(caught.value)
    assert caught.value.category == types.RequestErrorCategory.User


def test_an_image_is_refused_by_its_place(sampler):
    image = types.ImageChunk(data=b"\x89PNG", format="png")
    prompt = types.ModelInput(chunks=[types.EncodedTextChunk(tokens=[5]), image])
    with pytest.raises(tinker.RequestFailedError, match=r"prompt\.chunks\[1\]"):
        sampler.sample(prompt, 1, types.SamplingParams(max_tokens=1)).result(WAIT_S)


def test_two_hundred_samples_at_once(sampler):
    """All of them end, each with its own tokens: what comes together is what comes alone."""

    async def all_of_them():
        params = [types.SamplingParams(max_tokens=5, seed=seed, stop=[]) for seed in range(200)]
        prompts = [types.ModelInput.from_ints([*PROMPT[: 1 + seed % 12], 50 + seed]) for seed in range(200)]
        return await asyncio.gather(
            *(sampler.sample(prompt, 2, each) for prompt, each in zip(prompts, params, strict=True))
        )

    found = asyncio.run(all_of_them())
    assert [len(response.sequences) for response in found] == [2] * 200
    for seed in (0, 77, 199):
        alone = sample(sampler, [*PROMPT[: 1 + seed % 12], 50 + seed], 2, max_tokens=5, seed=seed)
        assert tokens_of(alone) == tokens_of(found[seed])
