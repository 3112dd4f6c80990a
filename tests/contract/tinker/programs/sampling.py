"""Sampling: from the base model and from trained weights, and everything that an answer can tell."""

import pickle

import tinker
import torch
from trying import MODEL, close, datum, feature, logprobs_of, made, main, refused, trainer

PROMPT = tinker.ModelInput.from_ints([1, 40, 41, 60])
TOKENS = tinker.SamplingParams(max_tokens=6, seed=7)


def base(service) -> tinker.SamplingClient:
    return made(service.create_sampling_client(base_model=MODEL))


@feature("sample from the base model")
def from_base(service):
    sampler = base(service)
    answer = sampler.sample(PROMPT, 3, TOKENS).result()
    assert len(answer.sequences) == 3
    assert len({sequence.sequence_id for sequence in answer.sequences}) == 3
    for sequence in answer.sequences:
        assert 1 <= len(sequence.tokens) == len(sequence.logprobs) <= 6
        assert sequence.stop_reason in ("length", "stop")
    assert sampler.get_base_model() == MODEL


@feature("the same seed gives the same tokens")
def seeds(service):
    sampler = base(service)
    rows = [[list(s.tokens) for s in sampler.sample(PROMPT, 2, TOKENS).result().sequences] for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0][0] != rows[0][1], "samples of one request differ"


@feature("stop by token, by text, never")
def stopping(service):
    sampler = base(service)
    (free,) = sampler.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=12, seed=3, stop=[])).result().sequences
    assert len(free.tokens) == 12
    assert free.stop_reason == "length"
    wanted = free.tokens[4]
    params = tinker.SamplingParams(max_tokens=12, seed=3, stop=[wanted])
    (cut,) = sampler.sample(PROMPT, 1, params).result().sequences
    assert cut.tokens == free.tokens[: free.tokens.index(wanted) + 1], "what stops it is part of it"
    assert cut.stop_reason == "stop"


@feature("temperature, top_k, top_p")
def choices(service):
    sampler = base(service)
    greedy = tinker.SamplingParams(max_tokens=4, temperature=0.0)
    one = tinker.SamplingParams(max_tokens=4, top_k=1, seed=5)
    nucleus = tinker.SamplingParams(max_tokens=4, top_p=1e-6, seed=6)
    rows = [list(sampler.sample(PROMPT, 1, params).result().sequences[0].tokens) for params in (greedy, one, nucleus)]
    assert rows[0] == rows[1] == rows[2], rows


@feature("prompt log-probabilities, compute_logprobs")
def prompt_logprobs(service):
    sampler = base(service)
    answer = sampler.sample(PROMPT, 1, TOKENS, include_prompt_logprobs=True).result()
    assert answer.prompt_logprobs[0] is None
    alone = sampler.compute_logprobs(PROMPT).result()
    assert len(alone) == 4
    assert all(close(a, b) for a, b in zip(alone[1:], answer.prompt_logprobs[1:], strict=True))
    (known,) = logprobs_of(trainer(service).forward([datum((1, 40, 41, 60))], "cross_entropy").result())
    assert all(close(a, b, 1e-3) for a, b in zip(alone[1:], known, strict=True)), (alone, known)


@feature("top-k of prompt and sampled tokens")
def top_k(service):
    answer = base(service).sample(
        PROMPT, 1, TOKENS, include_prompt_logprobs=True, topk_prompt_logprobs=3, topk_sample_logprobs=2
    ).result()  # fmt: skip
    rows = answer.topk_prompt_logprobs
    assert rows[0] is None
    assert all(len(row) == 3 and row[0][1] >= row[1][1] >= row[2][1] for row in rows[1:])
    (sequence,) = answer.sequences
    assert len(sequence.topk_logprobs) == len(sequence.tokens)
    assert all(len(row) == 2 for row in sequence.topk_logprobs)


@feature("log-probabilities of given candidates")
def candidates(service):
    ids = torch.tensor([[40, -1], [41, 50], [60, 51]])
    for given in (tinker.TensorData.from_torch(ids), tinker.TensorData.from_torch_sparse(ids, pad_value=-1)):
        answer = base(service).sample(
            PROMPT, 1, TOKENS, include_prompt_logprobs=True, target_prompt_logprobs=given
        ).result()  # fmt: skip
        found = answer.target_prompt_logprobs.to_torch().reshape(3, 2)
        assert found[0, 1] == 0.0
        assert all(close(a, b) for a, b in zip(found[:, 0].tolist(), answer.prompt_logprobs[1:], strict=True))


@feature("alternatives drawn for prompt tokens", since="0.32")
def alternatives(service):
    drawn = base(service).sample(PROMPT, 1, TOKENS, prompt_alt_tokens_k=3).result().prompt_alt_tokens
    assert list(drawn.tokens.shape) == list(drawn.logprobs.shape) == [3, 3]


@feature("log-probabilities of the prompt's last tokens", since="0.34")
def last_n(service):
    answer = base(service).sample(PROMPT, 1, TOKENS, include_prompt_logprobs=True, prompt_logprobs_last_n=2).result()
    assert [p is None for p in answer.prompt_logprobs] == [True, True, False, False]


def step(client):
    client.forward_backward([datum()], "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=3e-2)).result()


def logprobs_now(client):
    return logprobs_of(client.forward([datum()], "cross_entropy").result())[0]


def sampled_like(sampler, client):
    """Whether a sampler has exactly a trainer's weights: what they say of the same tokens."""
    seen = sampler.compute_logprobs(tinker.ModelInput.from_ints([1, 40, 41, 60, 61, 2])).result()
    return all(close(a, b, 1e-3) for a, b in zip(seen[1:], logprobs_now(client), strict=True))


@feature("sample from weights just trained, unnamed")
def ephemeral(service):
    client = trainer(service)
    before = made(client.save_weights_and_get_sampling_client())
    for _ in range(2):
        step(client)
        sampler = made(client.save_weights_and_get_sampling_client())
        assert sampled_like(sampler, client)
    assert not sampled_like(before, client), "a snapshot stays what it was"


@feature("sample from named weights")
def named(service):
    client = trainer(service)
    step(client)
    path = client.save_weights_for_sampler("one").result().path
    assert path == f"tinker://{client.model_id}/sampler_weights/one"
    for sampler in (made(service.create_sampling_client(model_path=path)), made(client.create_sampling_client(path))):
        assert sampled_like(sampler, client)
        assert sampler.get_base_model() == MODEL


@feature("sampler of kind inflight", since="0.38")
def inflight(service):
    client = trainer(service)
    sampler = made(client.save_weights_and_get_sampling_client(kind="inflight"))
    step(client)
    newer = made(client.save_weights_and_get_sampling_client(kind="inflight"))
    assert sampled_like(newer, client)
    assert sampler.sample(PROMPT, 1, TOKENS).result().sequences


@feature("sampled log-probabilities are those of training")
def on_policy(service):
    client = trainer(service)
    step(client)
    sampler = made(client.save_weights_and_get_sampling_client())
    (sequence,) = sampler.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=8, seed=1)).result().sequences
    tokens = [1, 40, 41, 60, *sequence.tokens]
    (known,) = logprobs_of(client.forward([datum(tokens)], "cross_entropy").result())
    assert all(close(a, b, 1e-3) for a, b in zip(sequence.logprobs, known[3:], strict=True))


@feature("a pickled SamplingClient")
def pickled(service):
    sampler = base(service)
    again = pickle.loads(pickle.dumps(sampler))
    answers = [list(each.sample(PROMPT, 1, TOKENS).result().sequences[0].tokens) for each in (sampler, again)]
    assert answers[0] == answers[1]


@feature("200 samples at once")
def crowd(service):
    sampler = base(service)
    prompts = [tinker.ModelInput.from_ints([1, 40 + index % 100, 41]) for index in range(200)]
    futures = [sampler.sample(prompt, 1, TOKENS) for prompt in prompts]
    assert all(len(future.result().sequences) == 1 for future in futures)


@feature("users' mistakes in sampling are told at once")
def mistakes(service):
    sampler = base(service)
    with refused():
        sampler.sample(tinker.ModelInput.from_ints([1, 10**6]), 1, TOKENS).result()
    with refused("nowhere"):
        made(service.create_sampling_client(model_path="tinker://nobody/sampler_weights/nowhere"))
    assert sampler.sample(PROMPT, 1, TOKENS).result().sequences


if __name__ == "__main__":
    main()
