"""The engine against transformers' own forward pass and generation, alone and in mixed company."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_proto.errors import ModelError
from farstep_sampler.engines import torch_engine
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.kv_shape import KVShape, cache_budget
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

MakeJob = Callable[..., SampleJob]
RunJobs = Callable[..., list[SampleResult]]
Prompts = list[list[int]]


def logprobs_TV(base: BaseModel, ids: list[int]) -> torch.Tensor:
    """What a trainer computes: one plain forward pass over everything, with whatever is active."""
    with torch.no_grad():
        return torch.log_softmax(base.logits(base.hidden_states(torch.tensor([ids]))[0]), -1)


def tokens_of(results: list[SampleResult]) -> list[list[list[int]]]:
    return [[sequence.tokens for sequence in result.sequences] for result in results]


def worst_difference(base: BaseModel, prompt: list[int], result: SampleResult) -> float:
    worst = 0.0
    for sequence in result.sequences:
        expected_TV = logprobs_TV(base, prompt + sequence.tokens)
        for step, (token, found) in enumerate(zip(sequence.tokens, sequence.logprobs, strict=True)):
            worst = max(worst, abs(found - expected_TV[len(prompt) - 1 + step, token].item()))
    return worst


def test_greedy_equals_transformers_generate(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    results = run_jobs(engine, [make_job(prompt, temperature=0.0) for prompt in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([prompt])
        generated = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert result.sequences[0].tokens == generated[0, len(prompt) :].tolist()


def test_log_probabilities_agree_with_the_trainers_forward(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    jobs = [make_job(prompt, num_samples=2, seed=seed) for seed, prompt in enumerate(prompts)]
    for prompt, result in zip(prompts, run_jobs(engine, jobs), strict=True):
        assert worst_difference(base, prompt, result) < 1e-5


def test_several_adapters_in_one_batch_agree_with_each_alone(
    engine: TorchEngine,
    base: BaseModel,
    layers: LoraLayers,
    make_adapter: Callable[..., Adapter],
    make_job: MakeJob,
    run_jobs: RunJobs,
    prompts: Prompts,
) -> None:
    slots = [index % 4 for index in range(len(prompts))]
    results = run_jobs(engine, [make_job(prompt, seed=5) for prompt in prompts], slots)
    by_slot: dict[int, float] = {}
    for slot, prompt, result in zip(slots, prompts, results, strict=True):
        with layers.active([make_adapter(slot) if slot else None]):
            by_slot[slot] = max(by_slot.get(slot, 0.0), worst_difference(base, prompt, result))
    assert by_slot.keys() == {0, 1, 2, 3}
    assert max(by_slot.values()) < 3e-5  # these adapters are large: logits around 30
    assert tokens_of(results) != tokens_of(run_jobs(engine, [make_job(prompt, seed=5) for prompt in prompts]))


def test_company_changes_neither_tokens_nor_log_probabilities(
    engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    slots = [index % 4 for index in range(len(prompts))]
    jobs = [make_job(prompt, num_samples=2, seed=seed, max_tokens=6 + seed) for seed, prompt in enumerate(prompts)]
    worst = 0.0
    for job, slot, together in zip(jobs, slots, run_jobs(engine, jobs, slots), strict=True):
        (alone,) = run_jobs(engine, [job], [slot])
        assert tokens_of([alone]) == tokens_of([together])
        for x, y in zip(alone.sequences, together.sequences, strict=True):
            worst = max(worst, *(abs(a - b) for a, b in zip(x.logprobs, y.logprobs, strict=True)))
    assert worst < 1e-6  # 0 with MKL, for which the sizes are chosen; another BLAS may round otherwise


def test_an_adapters_scaling_and_rank_survive_its_slot(
    engine: TorchEngine, base: BaseModel, layers: LoraLayers, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    adapter = Adapter.init(layers, LoraSpec(rank=3, alpha=7.0), seed=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    engine.load(4, adapter)
    results = run_jobs(engine, [make_job(prompt) for prompt in prompts[3:5]], [4, 4])
    with layers.active([adapter]):
        for prompt, result in zip(prompts[3:5], results, strict=True):
            assert worst_difference(base, prompt, result) < 1e-5
    assert max(worst_difference(base, p, r) for p, r in zip(prompts[3:5], results, strict=True)) > 1e-2


def test_samples_differ_by_index_and_repeat_by_seed(
    engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    job = make_job(prompts[4], num_samples=6, max_tokens=20, seed=3)
    ((*samples,),) = tokens_of(run_jobs(engine, [job]))
    assert len({tuple(sample) for sample in samples}) > 1
    fewer = make_job(prompts[4], num_samples=2, max_tokens=20, seed=3)
    assert tokens_of(run_jobs(engine, [fewer]))[0] == samples[:2]
    other = make_job(prompts[4], num_samples=6, max_tokens=20, seed=4)
    assert tokens_of(run_jobs(engine, [other]))[0] != samples


def test_sequences_join_and_leave_at_any_step(
    engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    jobs = [make_job(prompt, seed=i, max_tokens=3 + 2 * i) for i, prompt in enumerate(prompts)]
    expected = tokens_of([run_jobs(engine, [job])[0] for job in jobs])
    found: dict[int, SampleResult] = {}
    for ticket, job in enumerate(jobs):
        engine.submit(ticket, job, slot=0)
        for finished in engine.step():
            assert isinstance(finished.outcome, SampleResult)
            found[finished.ticket] = finished.outcome
    while engine.has_work:
        for finished in engine.step():
            assert isinstance(finished.outcome, SampleResult)
            found[finished.ticket] = finished.outcome
    assert tokens_of([found[ticket] for ticket in range(len(jobs))]) == expected


def test_a_cache_too_small_for_all_loses_nothing(
    base: BaseModel, table: AdapterTable, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    roomy = TorchEngine(base, table, max_rows=32, budget_tokens=1 << 15)
    tight = TorchEngine(base, table, max_rows=32, budget_tokens=384)
    jobs = [make_job(p, num_samples=3, seed=i, max_tokens=80, num_topk=1) for i, p in enumerate(prompts[:5])]
    assert tokens_of(run_jobs(tight, jobs)) == tokens_of(run_jobs(roomy, jobs))


def test_a_group_larger_than_the_batch_is_served_in_parts(
    base: BaseModel, table: AdapterTable, engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    narrow = TorchEngine(base, table, max_rows=2, budget_tokens=1 << 15)
    job = make_job(prompts[3], num_samples=5, wants_prompt_logprobs=True)
    (parts,), (whole,) = run_jobs(narrow, [job]), run_jobs(engine, [job])
    assert tokens_of([parts]) == tokens_of([whole])
    np.testing.assert_array_equal(parts.prompt_logprobs, whole.prompt_logprobs)


def test_a_swap_leaves_running_sequences_on_their_version(
    engine: TorchEngine, make_adapter: Callable[..., Adapter], make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    job = make_job(prompts[5], max_tokens=30)
    (expected,) = run_jobs(engine, [job], [1])
    engine.submit(0, job, slot=1)
    for _ in range(10):
        assert engine.step() == []
    engine.load(4, make_adapter(9, rank=16))  # a larger rank: everything is laid out anew
    engine.submit(1, job, slot=4)
    outcomes = [finished for _ in range(40) for finished in engine.step()]
    by_ticket = {finished.ticket: finished.outcome for finished in outcomes}
    assert isinstance(by_ticket[0], SampleResult)
    assert tokens_of([by_ticket[0]]) == tokens_of([expected])
    assert isinstance(by_ticket[1], SampleResult)
    assert tokens_of([by_ticket[1]]) != tokens_of([expected])


def test_prompt_log_probabilities_are_at_temperature_one(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    jobs = [
        make_job(p, max_tokens=i % 2, temperature=0.3, wants_prompt_logprobs=True, num_prompt_topk=3)
        for i, p in enumerate(prompts)
    ]
    for prompt, result in zip(prompts, run_jobs(engine, jobs), strict=True):
        expected_TV = logprobs_TV(base, prompt)
        assert result.prompt_logprobs is not None
        assert result.prompt_topk is not None
        assert np.isnan(result.prompt_logprobs[0])
        assert result.prompt_topk.ids[0].tolist() == [-1, -1, -1]
        for position, token in enumerate(prompt[1:], start=1):
            assert abs(result.prompt_logprobs[position] - expected_TV[position - 1, token].item()) < 1e-5
            best = expected_TV[position - 1].topk(3)
            np.testing.assert_allclose(result.prompt_topk.logprobs[position], best.values, atol=1e-5)
            assert result.prompt_topk.ids[position].tolist() == best.indices.tolist()


def test_candidates_of_sampled_tokens(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    jobs = [make_job(prompts[3], num_topk=3, temperature=0.5), make_job(prompts[4]), make_job(prompts[5], num_topk=1)]
    results = run_jobs(engine, jobs)
    topk = results[0].sequences[0].topk
    assert topk is not None
    prompt, tokens = prompts[3], results[0].sequences[0].tokens
    with torch.no_grad():
        logits_TV = base.logits(base.hidden_states(torch.tensor([prompt + tokens]))[0])
    expected_NV = torch.log_softmax(logits_TV / 0.5, -1)[len(prompt) - 1 : -1]
    np.testing.assert_allclose(topk.logprobs, expected_NV.topk(3).values, atol=1e-5)
    assert results[1].sequences[0].topk is None
    assert results[2].sequences[0].topk is not None
    assert results[2].sequences[0].topk.ids.shape == (12, 1)


def test_sequences_end_at_stop_tokens_strings_or_length(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    (free,) = run_jobs(engine, [make_job(prompts[6], max_tokens=30)])
    tokens = free.sequences[0].tokens
    assert free.sequences[0].stop_reason == "length"
    text = base.tokenizer.decode(tokens)
    middle = text[len(text) // 2 :][:3]
    by_token = make_job(prompts[6], max_tokens=30, stop_tokens=frozenset({tokens[7]}))
    by_string = make_job(prompts[6], max_tokens=30, stop_strings=(middle,))
    ended, matched = (result.sequences[0] for result in run_jobs(engine, [by_token, by_string]))
    assert ended.tokens == tokens[: tokens.index(tokens[7]) + 1]
    assert ended.stop_reason == matched.stop_reason == "stop"
    assert matched.tokens == tokens[: len(matched.tokens)]
    assert middle in base.tokenizer.decode(matched.tokens)
    assert middle not in base.tokenizer.decode(matched.tokens[:-1])


def test_cancelling_frees_the_rows(engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts) -> None:
    (expected,) = run_jobs(engine, [make_job(prompts[4])])
    engine.submit(0, make_job(prompts[3], num_samples=4, max_tokens=500), slot=0)
    engine.submit(1, make_job(prompts[4]), slot=0)
    engine.step()
    engine.cancel(0)
    engine.cancel(77)
    outcomes = [finished for _ in range(12) for finished in engine.step()]
    assert [finished.ticket for finished in outcomes] == [1]
    assert isinstance(outcomes[0].outcome, SampleResult)
    assert tokens_of([outcomes[0].outcome]) == tokens_of([expected])
    assert not engine.has_work


def test_broken_weights_fail_their_own_requests_only(
    engine: TorchEngine,
    make_adapter: Callable[..., Adapter],
    make_job: MakeJob,
    run_jobs: RunJobs,
    prompts: Prompts,
) -> None:
    expected = run_jobs(engine, [make_job(prompts[5], max_tokens=20)], [1])
    engine.load(4, make_adapter(8, scale=1e18))  # finite, but nothing it computes is
    engine.submit(0, make_job(prompts[4], num_samples=3, max_tokens=20), slot=4)
    engine.submit(1, make_job(prompts[5], max_tokens=20), slot=1)
    outcomes = {finished.ticket: finished.outcome for _ in range(25) for finished in engine.step()}
    assert isinstance(outcomes[0], ModelError)
    assert isinstance(outcomes[1], SampleResult)
    assert tokens_of([outcomes[1]]) == tokens_of(expected)
    assert tokens_of(run_jobs(engine, [make_job(prompts[5], max_tokens=20)], [1])) == tokens_of(expected)


@pytest.mark.parametrize("where", ["batch_size", "sample"])
def test_an_exception_costs_only_the_requests_in_it(
    engine: TorchEngine,
    make_job: MakeJob,
    run_jobs: RunJobs,
    prompts: Prompts,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, where, fail)
        engine.submit(0, make_job(prompts[3], num_samples=2), slot=0)
        (finished,) = engine.step()
    assert str(finished.outcome) == "out of memory"
    assert not engine.has_work
    run_jobs(engine, [make_job(prompts[3])])


SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE),
        MistralConfig(**SHAPE, sliding_window=7),
        Gemma2Config(**SHAPE, head_dim=8, sliding_window=7, query_pre_attn_scalar=8),
    ],
    ids=["llama", "mistral-sliding", "gemma2-mixed-eager"],
)
def test_other_architectures(
    config: LlamaConfig,
    base: BaseModel,
    make_job: MakeJob,
    run_jobs: RunJobs,
    prompts: Prompts,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    other = load_base_model(str(folder), device="cpu")
    engine = TorchEngine(other, AdapterTable(LoraLayers.install(other), num_slots=1), max_rows=8, budget_tokens=1 << 12)
    jobs = [make_job(prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    for prompt, result in zip(prompts, run_jobs(engine, jobs), strict=True):
        assert worst_difference(other, prompt, result) < 2e-5


def test_the_cache_budget_is_within_memory(base: BaseModel) -> None:
    assert KVShape.of(base).token_bytes == 2 * 4 * 2 * 32 * 4  # keys and values · layers · heads · head size · fp32
    assert cache_budget(base, max_rows=2) <= 2 * base.max_seq_len


def test_five_versions_interleaved_equal_the_trainers_forward(
    base: BaseModel,
    layers: LoraLayers,
    make_adapter: Callable[..., Adapter],
    make_job: MakeJob,
    run_jobs: RunJobs,
    prompts: Prompts,
) -> None:
    table = AdapterTable(layers, num_slots=5)
    engine = TorchEngine(base, table, max_rows=32, budget_tokens=1 << 15)
    versions = {slot: make_adapter(20 + slot, rank=2 * slot) for slot in range(1, 6)}
    for slot, adapter in versions.items():
        engine.load(slot, adapter)
    jobs = [make_job(prompt, seed=seed, num_samples=2, max_tokens=20) for seed, prompt in enumerate(prompts[:10])]
    slots = [1 + index % 5 for index in range(10)]
    for _ in range(2):  # the second time with prefixes from the cache
        for slot, job, result in zip(slots, jobs, run_jobs(engine, jobs, slots), strict=True):
            with layers.active([versions[slot]]):
                assert worst_difference(base, job.prompt.tolist(), result) < 3e-5


def test_a_long_prompt_does_not_keep_a_running_sequence_waiting(
    engine: TorchEngine, make_job: MakeJob, prompts: Prompts
) -> None:
    engine.submit(0, make_job(prompts[3], max_tokens=200), slot=0, streams=True)
    engine.step()
    engine.take_news()
    engine._chunk = 64.0
    engine.submit(1, make_job([7, 8, 9] * 500, max_tokens=1), slot=0)
    num_steps = 0
    while not engine.step():
        num_steps += 1
        assert len(engine.take_news()) == 1  # a token at every step
    assert num_steps > 3
    engine.cancel(0)
    assert engine.held_tokens == 0


def test_memory_is_given_back_however_jobs_end(engine: TorchEngine, make_job: MakeJob, prompts: Prompts) -> None:
    for ticket, prompt in enumerate(prompts):
        engine.submit(ticket, make_job(prompt, num_samples=3, max_tokens=300), slot=ticket % 4)
    for _ in range(5):
        engine.step()
    assert engine.held_tokens > 0
    for ticket in range(len(prompts)):
        engine.cancel(ticket)
    assert engine.held_tokens == 0
    assert not engine.has_work
