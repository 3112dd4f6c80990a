"""What can be asked about a prompt, against transformers' own forward pass."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import ids_to_bytes
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.prompt_targets import PromptTargets
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult, response_of
from farstep_sampler.sampling import draws_for_prompt

MakeJob = Callable[..., SampleJob]
MakeAdapter = Callable[..., Adapter]
RunJobs = Callable[..., list[SampleResult]]

TOLERANCE = 2e-5  # fp32 sums in another order
PROMPT = np.random.default_rng(3).integers(3, 380, 150).tolist()  # nine blocks of the prefix cache and more


def expected_TV(base: BaseModel, prompt: list[int]) -> torch.Tensor:
    """Row t is about position t + 1."""
    with torch.no_grad():
        return base.model(torch.tensor([prompt])).logits[0].double().log_softmax(-1)


def longs(*values: int) -> bytes:
    return np.array(values, dtype="<i8").tobytes()


def targets_of(message: pb.PromptTargets, *, num_prompt: int, most: int = 1000) -> PromptTargets:
    return PromptTargets.of(message, num_prompt=num_prompt, vocab_size=384, most_values=most)


@pytest.mark.parametrize("last_n", [1, 2, 5, 70, 149])
def test_the_last_of_a_prompt_alone(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, last_n: int
) -> None:
    first = len(PROMPT) - last_n
    job = make_job(PROMPT, max_tokens=0, wants_prompt_logprobs=True, num_prompt_topk=2, first_scored=first)
    truth_TV = expected_TV(base, PROMPT)
    results = [run_jobs(engine, [job])[0] for _ in range(2)]  # the second time behind what the cache has
    for result in results:
        assert result.prompt_logprobs is not None
        assert result.prompt_topk is not None
        assert np.isnan(result.prompt_logprobs[:first]).all()
        assert (result.prompt_topk.ids[:first] == -1).all()
        wanted = truth_TV[first - 1 : -1].gather(1, torch.tensor(PROMPT[first:])[:, None])[:, 0]
        np.testing.assert_allclose(result.prompt_logprobs[first:], wanted, atol=TOLERANCE)
        best = truth_TV[first - 1 : -1].topk(2)
        assert result.prompt_topk.ids[first:].tolist() == best.indices.tolist()
        np.testing.assert_allclose(result.prompt_topk.logprobs[first:], best.values, atol=TOLERANCE)
    assert results[0].num_cached == 0
    assert results[1].num_cached == (first - 1) // 16 * 16  # whole blocks of what nobody asks about


def test_targets_are_scored_where_they_stand(
    engine: TorchEngine,
    base: BaseModel,
    layers: LoraLayers,
    make_adapter: MakeAdapter,
    make_job: MakeJob,
    run_jobs: RunJobs,
) -> None:
    """With an adapter, dense and listed: the same cells."""
    k, rng = 3, np.random.default_rng(1)
    table = np.where(rng.random((len(PROMPT) - 1, k)) < 0.3, rng.integers(0, 384, (len(PROMPT) - 1, k)), -1)
    table[:40] = -1
    dense = pb.PromptTargets(k=k, token_ids=ids_to_bytes(table))
    counts = (table >= 0).sum(1)
    listed = pb.PromptTargets(
        k=k,
        token_ids=ids_to_bytes(table[table >= 0]),
        crow_indices=longs(0, *counts.cumsum().tolist()),
        col_indices=longs(*np.nonzero(table >= 0)[1].tolist()),
    )
    with layers.active([make_adapter(2)]):
        truth = expected_TV(base, PROMPT)[:-1].gather(1, torch.from_numpy(table).clamp_min(0)).numpy()
    truth = np.where(table >= 0, truth, 0.0)
    jobs = [
        make_job(PROMPT, max_tokens=1, prompt_targets=targets_of(message, num_prompt=len(PROMPT)))
        for message in (dense, listed)
    ]
    answers = [response_of(r, policy_version=0).target_prompt_logprobs for r in run_jobs(engine, jobs, [2, 2])]
    found = [np.frombuffer(answer.logprobs, "<f4") for answer in answers]
    np.testing.assert_allclose(found[0].reshape(-1, k), truth, atol=1e-4)  # these adapters are large
    assert (found[0].reshape(-1, k)[table < 0] == 0).all()
    np.testing.assert_array_equal(found[1], found[0].reshape(-1, k)[table >= 0])
    assert [answer.k for answer in answers] == [k, k]
    assert (answers[1].crow_indices, answers[1].col_indices) == (listed.crow_indices, listed.col_indices)
    (again,) = run_jobs(engine, [jobs[0]], [2])
    assert again.num_cached == 32, "rows before the first that names a token are not computed again"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_alternatives_are_drawn_from_each_positions_distribution(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, temperature: float
) -> None:
    """By inverse cumulative distribution over ascending ids, as samples are, here in numpy."""
    k, prompt = 4, PROMPT[:60]
    job = make_job(prompt, max_tokens=1, temperature=temperature, num_prompt_alternatives=k, seed=77, top_k=1)
    (result,) = run_jobs(engine, [job])
    assert result.alternatives is not None
    truth = expected_TV(base, prompt)[:-1].numpy()
    ids, logprobs = result.alternatives.ids, result.alternatives.logprobs
    assert ids.shape == logprobs.shape == (59, k)
    np.testing.assert_allclose(logprobs, np.take_along_axis(truth, ids, 1), atol=TOLERANCE)  # at temperature 1
    weights = np.exp(truth / temperature)
    sums = np.cumsum(weights / weights.sum(1, keepdims=True), axis=1)
    uniforms = draws_for_prompt(77, 0, 59 * k).reshape(59, k)
    for row in range(59):
        for column in range(k):
            token, u = ids[row, column], uniforms[row, column]
            assert (sums[row, token - 1] if token else 0) - 1e-5 <= u <= sums[row, token] + 1e-5


def test_alternatives_do_not_depend_on_the_company_or_the_chunks(
    engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: list[list[int]]
) -> None:
    job = make_job(PROMPT, num_prompt_alternatives=5, seed=9, num_samples=2)
    (alone,) = run_jobs(engine, [job])
    (drawn_again,) = run_jobs(engine, [make_job(PROMPT, num_prompt_alternatives=5, seed=10)])
    running = [make_job(prompt, max_tokens=40, seed=i) for i, prompt in enumerate(prompts)]
    for ticket, other in enumerate(running):
        engine.submit(100 + ticket, other, slot=0)
    engine.step()
    crowded = run_jobs_beside(engine, job)
    for result in (crowded,):
        assert result.alternatives is not None
        assert alone.alternatives is not None
        np.testing.assert_array_equal(result.alternatives.ids, alone.alternatives.ids)
    assert drawn_again.alternatives is not None
    assert (drawn_again.alternatives.ids != crowded.alternatives.ids).any()  # type: ignore[union-attr]


def run_jobs_beside(engine: TorchEngine, job: SampleJob) -> SampleResult:
    engine.submit(1, job, slot=0)
    outcome = None
    while engine.has_work:
        for finished in engine.step():
            if finished.ticket == 1:
                outcome = finished.outcome
    assert isinstance(outcome, SampleResult)
    return outcome


def test_greedy_alternatives_are_the_likeliest(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs
) -> None:
    (result,) = run_jobs(engine, [make_job(PROMPT, temperature=0.0, num_prompt_alternatives=2)])
    assert result.alternatives is not None
    assert result.alternatives.ids.tolist() == [[token] * 2 for token in expected_TV(base, PROMPT)[:-1].argmax(-1)]


def test_draws_of_a_prompt_are_numbered_from_its_beginning() -> None:
    whole = draws_for_prompt(5, 0, 50)
    assert ((whole >= 0) & (whole < 1)).all()
    for first in (1, 2, 3, 4, 17):
        np.testing.assert_array_equal(draws_for_prompt(5, first, 20), whole[first : first + 20])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1, 2])), "token_ids"),
        (pb.PromptTargets(k=0, token_ids=ids_to_bytes([])), "k"),
        (pb.PromptTargets(k=1, token_ids=b"abc"), "token_ids"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1, 384, 1])), "token_ids[1]"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1, -2, 1])), "token_ids[1]"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([-1, -1, -1])), ""),
        (pb.PromptTargets(k=4, token_ids=ids_to_bytes([1] * 12)), ""),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1]), crow_indices=longs(0, 1, 1)), "crow_indices"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1]), crow_indices=longs(0, 2, 1, 1)), "crow_indices"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1]), crow_indices=longs(0, 0, 0, 2)), "crow_indices"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1]), crow_indices=b"abc"), "crow_indices"),
        (pb.PromptTargets(k=1, token_ids=ids_to_bytes([1]), crow_indices=longs(0, 0, 0, 1)), "col_indices"),
        (
            pb.PromptTargets(k=1, token_ids=ids_to_bytes([1]), crow_indices=longs(0, 0, 0, 1), col_indices=longs(1)),
            "col_indices",
        ),
    ],
)
def test_bad_targets_are_named(message: pb.PromptTargets, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        targets_of(message, num_prompt=4, most=11)
    assert caught.value.field == ".".join(filter(None, ["target_prompt_logprobs", field]))
