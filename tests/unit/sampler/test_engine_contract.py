"""What every engine must do, whichever computes: against transformers, the trainer's forward pass, and itself.

`FARSTEP_TEST_ENGINES` names those that are tested; without it the torch engine. `make test-vllm` names the other.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import pytest_asyncio
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_proto.errors import ModelError
from farstep_sampler.constraint import Constraint
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.base import Engine
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.grammars import Grammars
from farstep_sampler.penalties import Penalties
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleDelta, SampleResult, joined

MakeJob = Callable[..., SampleJob]
MakeAdapter = Callable[..., Adapter]
Prompts = list[list[int]]

ENGINES = os.environ.get("FARSTEP_TEST_ENGINES", "torch").split(",")
NUM_SLOTS = 4
PROMPT = [5, 6, 7, 8, 9]
CHOICES = ("left", "right", "straight on")
SCHEMA = """{"type": "object", "required": ["list"], "additionalProperties": false,
  "properties": {"list": {"type": "array", "maxItems": 2, "items": {"enum": [1, 20, 300]}}}}"""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Subject:
    """An engine, and whether it is idle, which is nobody else's business."""

    engine: Engine
    is_idle: Callable[[], bool]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def subject(request: pytest.FixtureRequest, layers: LoraLayers) -> AsyncIterator[Subject]:
    if request.param == "vllm":
        from tests.support.vllm_starting import vllm_engine

        engine = vllm_engine(num_slots=NUM_SLOTS)
        made = Subject(engine, lambda: not engine._in_flight)
    else:
        table = AdapterTable(layers, num_slots=NUM_SLOTS)
        computing = TorchEngine(layers.base, table, max_rows=64, budget_tokens=1 << 16)
        made = Subject(EngineThread(computing), lambda: not computing.has_work)
    made.engine.start()
    yield made
    await made.engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(subject: Subject, make_adapter: MakeAdapter) -> Engine:
    """With adapters of seed s in slots s = 1, 2, 3."""
    for slot in (1, 2, 3):
        await subject.engine.load(slot, make_adapter(slot))
    return subject.engine


async def run(engine: Engine, *jobs: SampleJob, slots: list[int] | None = None) -> list[SampleResult]:
    chosen = slots or [0] * len(jobs)
    return list(await asyncio.gather(*(engine.sample(j, slot=s) for j, s in zip(jobs, chosen, strict=True))))


def tokens_of(results: list[SampleResult]) -> list[list[list[int]]]:
    return [[sequence.tokens for sequence in result.sequences] for result in results]


def logprobs_TV(base: BaseModel, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """What a trainer computes: one plain forward pass over everything, with whatever is active."""
    with torch.no_grad():
        return torch.log_softmax(base.logits(base.hidden_states(torch.tensor([ids]))[0]) / temperature, -1)


def worst_difference(base: BaseModel, job: SampleJob, result: SampleResult) -> float:
    prompt, worst = job.prompt.tolist(), 0.0
    for sequence in result.sequences:
        expected_TV = logprobs_TV(base, prompt + sequence.tokens, job.temperature or 1.0)
        for step, (token, found) in enumerate(zip(sequence.tokens, sequence.logprobs, strict=True)):
            worst = max(worst, abs(found - expected_TV[len(prompt) - 1 + step, token].item()))
    return worst


async def test_greedy_equals_transformers_generate(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts
) -> None:
    results = await run(engine, *(make_job(prompt, temperature=0.0, num_samples=2) for prompt in prompts))
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([prompt])
        generated = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=None
        )
        assert tokens_of([result]) == [[generated[0, len(prompt) :].tolist()] * 2]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.4},
        {"temperature": 2.0},
        {"temperature": 0.7, "top_k": 3},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 0.8, "min_p": 0.2},
        {"top_k": 5, "top_p": 0.5, "min_p": 0.1},
    ],
    ids=str,
)
async def test_log_probabilities_are_those_of_the_trainers_forward_after_temperature(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts, changes: dict[str, float]
) -> None:
    """Under the whole distribution: what is excluded from the choice changes nothing."""
    jobs = [make_job(prompt, num_samples=2, seed=seed, **changes) for seed, prompt in enumerate(prompts)]
    for job, result in zip(jobs, await run(engine, *jobs), strict=True):
        assert worst_difference(base, job, result) < 2e-5  # fp32 sums in another order, through a temperature of 0.4


async def test_several_adapters_in_one_batch_agree_with_each_alone(
    engine: Engine,
    base: BaseModel,
    layers: LoraLayers,
    make_adapter: MakeAdapter,
    make_job: MakeJob,
    prompts: Prompts,
) -> None:
    slots = [index % 4 for index in range(len(prompts))]
    jobs = [make_job(prompt, seed=5) for prompt in prompts]
    for slot, job, result in zip(slots, jobs, await run(engine, *jobs, slots=slots), strict=True):
        with layers.active([make_adapter(slot) if slot else None]):
            assert worst_difference(base, job, result) < 1e-4  # these adapters are large: logits around 30
        if slot:
            assert worst_difference(base, job, result) > 1e-2


async def test_a_slot_that_is_loaded_anew_has_nothing_of_what_was_there(
    engine: Engine, base: BaseModel, layers: LoraLayers, make_adapter: MakeAdapter, make_job: MakeJob
) -> None:
    """Not in its prefix cache either: the prompt fills several blocks of it."""
    job = make_job(list(range(10, 210)), num_samples=2)
    for seed, rank in ((21, 4), (22, 4), (23, 16), (21, 2)):
        adapter = make_adapter(seed, rank=rank)
        await engine.load(4, adapter)
        for _ in range(2):
            (result,) = await run(engine, job, slots=[4])
            with layers.active([adapter]):
                assert worst_difference(base, job, result) < 1e-4


@pytest.mark.parametrize("use_rslora", [False, True])
async def test_scaling_is_applied(
    engine: Engine, base: BaseModel, layers: LoraLayers, make_adapter: MakeAdapter, make_job: MakeJob, use_rslora: bool
) -> None:
    made = make_adapter(3, rank=3, scale=0.05)
    adapter = Adapter(made.layers, replace(made.spec, alpha=7.0, use_rslora=use_rslora), made.weights)
    await engine.load(4, adapter)
    job = make_job(PROMPT)
    (result,) = await run(engine, job, slots=[4])
    with layers.active([adapter]):
        assert worst_difference(base, job, result) < 2e-5
    with layers.active([made]):
        assert worst_difference(base, job, result) > 1e-2


async def test_the_same_seed_gives_the_same_tokens_in_any_company(
    engine: Engine, make_job: MakeJob, prompts: Prompts
) -> None:
    slots = [index % 4 for index in range(len(prompts))]
    jobs = [make_job(prompt, num_samples=2, seed=seed, max_tokens=6 + seed) for seed, prompt in enumerate(prompts)]
    together = await run(engine, *jobs, slots=slots)
    for job, slot, result in zip(jobs, slots, together, strict=True):
        (alone,) = await run(engine, job, slots=[slot])
        assert tokens_of([alone]) == tokens_of([result])
        for x, y in zip(alone.sequences, result.sequences, strict=True):
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-5)


async def test_samples_differ_by_index_and_repeat_by_seed(engine: Engine, make_job: MakeJob) -> None:
    def job(**changes: int) -> SampleJob:
        return make_job(PROMPT, **({"num_samples": 6, "max_tokens": 20, "seed": 3} | changes))

    ((*samples,), fewer, next_seed, lowest) = tokens_of(
        await run(engine, job(), job(num_samples=2), job(seed=4), job(seed=-(1 << 63)))
    )
    assert len({tuple(sample) for sample in samples}) == 6
    assert fewer == samples[:2]
    assert not {tuple(sample) for sample in next_seed} & {tuple(sample) for sample in samples}
    assert lowest not in (samples, next_seed)


async def test_what_is_excluded_is_not_sampled(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts
) -> None:
    def kept(probabilities_V: torch.Tensor, name: str) -> list[int]:
        sorted_V, order_V = probabilities_V.sort(descending=True)
        match name:
            case "top_k":
                return order_V[:3].tolist()
            case "top_p":
                return order_V[: int((sorted_V.cumsum(0) - sorted_V < 0.5).sum())].tolist()
            case _:
                return order_V[sorted_V >= 0.3 * sorted_V[0]].tolist()

    for name, value in (("top_k", 3), ("top_p", 0.5), ("min_p", 0.3)):
        jobs = [make_job(p, num_samples=8, max_tokens=1, temperature=2.0, **{name: value}) for p in prompts]
        for job, result in zip(jobs, await run(engine, *jobs), strict=True):
            allowed = kept(logprobs_TV(base, job.prompt.tolist(), 2.0)[-1].exp(), name)
            assert {sequence.tokens[0] for sequence in result.sequences} <= set(allowed)


async def test_one_candidate_is_greedy(engine: Engine, make_job: MakeJob, prompts: Prompts) -> None:
    greedy = await run(engine, *(make_job(prompt, temperature=0.0) for prompt in prompts))
    for changes in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert tokens_of(await run(engine, *(make_job(p, **changes) for p in prompts))) == tokens_of(greedy)


async def test_prompt_log_probabilities_are_at_temperature_one(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts
) -> None:
    asked = {"temperature": 0.3, "wants_prompt_logprobs": True, "num_prompt_topk": 3}
    jobs = [make_job(p, max_tokens=i % 2, num_samples=1 + i % 3, **asked) for i, p in enumerate(prompts)]
    for job, result in zip(jobs, await run(engine, *jobs), strict=True):
        prompt = job.prompt.tolist()
        expected_TV = logprobs_TV(base, prompt)
        assert [len(sequence.tokens) for sequence in result.sequences] == [job.max_tokens] * job.num_samples
        assert result.prompt_logprobs is not None
        assert result.prompt_topk is not None
        assert len(result.prompt_logprobs) == len(prompt)
        assert np.isnan(result.prompt_logprobs[0])
        assert result.prompt_topk.ids[0].tolist() == [-1, -1, -1]
        for position, token in enumerate(prompt[1:], start=1):
            assert abs(result.prompt_logprobs[position] - expected_TV[position - 1, token].item()) < 2e-5
            best = expected_TV[position - 1].topk(3)
            np.testing.assert_allclose(result.prompt_topk.logprobs[position], best.values, atol=2e-5)
            assert result.prompt_topk.ids[position].tolist() == best.indices.tolist()


async def test_the_last_tokens_of_a_prompt_alone_can_be_scored(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts
) -> None:
    asked = {"max_tokens": 0, "wants_prompt_logprobs": True, "num_prompt_topk": 2}
    jobs = [make_job(prompt, first_scored=len(prompt) - 1, **asked) for prompt in prompts if len(prompt) > 2]
    for job, result in zip(jobs, await run(engine, *jobs), strict=True):
        prompt = job.prompt.tolist()
        assert result.prompt_logprobs is not None
        assert result.prompt_topk is not None
        assert np.isnan(result.prompt_logprobs[:-1]).all()
        assert (result.prompt_topk.ids[:-1] == -1).all()
        expected_V = logprobs_TV(base, prompt)[-2]
        assert abs(result.prompt_logprobs[-1] - expected_V[prompt[-1]].item()) < 2e-5
        assert result.prompt_topk.ids[-1].tolist() == expected_V.topk(2).indices.tolist()


async def test_a_prompt_as_long_as_the_context_can_be_looked_at(
    engine: Engine, base: BaseModel, make_job: MakeJob
) -> None:
    prompt = (list(range(10, 910)) * 3)[: base.max_seq_len]
    jobs = [
        make_job(prompt, max_tokens=0, wants_prompt_logprobs=True),
        make_job(prompt[:-3], max_tokens=3, num_topk=2),
    ]
    looked, filled = await run(engine, *jobs)
    assert looked.prompt_logprobs is not None
    expected_T = logprobs_TV(base, prompt)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    np.testing.assert_allclose(looked.prompt_logprobs[1:], expected_T, atol=1e-4)
    assert (len(filled.sequences[0].tokens), filled.sequences[0].stop_reason) == (3, "length")


async def test_candidates_of_sampled_tokens(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts
) -> None:
    job = make_job(prompts[3], num_topk=3, temperature=0.5, top_k=1)
    results = await run(engine, job, make_job(prompts[4]), make_job(prompts[5], num_topk=1))
    topk = results[0].sequences[0].topk
    assert topk is not None
    tokens = results[0].sequences[0].tokens
    expected_NV = logprobs_TV(base, prompts[3] + tokens, 0.5)[len(prompts[3]) - 1 : -1]
    np.testing.assert_allclose(topk.logprobs, expected_NV.topk(3).values, atol=2e-5)
    assert topk.ids.tolist() == expected_NV.topk(3).indices.tolist()
    assert results[1].sequences[0].topk is None
    assert results[2].sequences[0].topk is not None
    assert results[2].sequences[0].topk.ids.shape == (12, 1)


async def test_sequences_end_at_stop_tokens_strings_or_length(
    engine: Engine, base: BaseModel, make_job: MakeJob, prompts: Prompts
) -> None:
    (free,) = await run(engine, make_job(prompts[6], max_tokens=30))
    tokens = free.sequences[0].tokens
    assert free.sequences[0].stop_reason == "length"
    text = base.text(tokens)
    middle = text[len(text) // 2 :][:3]
    by_token = make_job(prompts[6], max_tokens=30, stop_tokens=frozenset({tokens[7]}))
    by_string = make_job(prompts[6], max_tokens=30, stop_strings=(middle,), num_topk=2)
    ended, matched = (result.sequences[0] for result in await run(engine, by_token, by_string))
    assert ended.tokens == tokens[: tokens.index(tokens[7]) + 1]
    assert ended.stop_reason == matched.stop_reason == "stop"
    assert matched.tokens == tokens[: len(matched.tokens)]
    assert len(matched.logprobs) == len(matched.tokens)
    assert matched.topk is not None
    assert len(matched.topk.ids) == len(matched.tokens)
    assert middle in base.text(matched.tokens)
    assert middle not in base.text(matched.tokens[:-1])


async def test_a_models_own_end_is_ignored_where_the_job_ignores_it(
    engine: Engine, base: BaseModel, make_job: MakeJob
) -> None:
    """The job's stop tokens are all there are; what the model's files say is for whoever makes the job."""
    eos = base.eos_token_ids[0]
    for seed in range(40):
        (result,) = await run(engine, make_job(PROMPT, max_tokens=60, temperature=2.0, seed=seed, num_samples=4))
        for sequence in result.sequences:
            assert len(sequence.tokens) == 60
        if any(eos in sequence.tokens[:-1] for sequence in result.sequences):
            return
    pytest.fail("no sample had an end token, so that nothing was tested")


async def test_penalties_and_bias_change_the_distribution_as_they_say(
    engine: Engine, base: BaseModel, make_job: MakeJob
) -> None:
    prompt = [5, 6, 7, 7, 8, 9]
    asked = Penalties(0.7, 0.3, 1.4, np.unique(np.array(prompt, np.int32)))
    bias = ((40, 6.0), (41, -100.0))
    job = make_job(prompt, num_samples=2, max_tokens=25, temperature=0.8, penalties=asked, logit_bias=bias)
    (result,) = await run(engine, job)
    for sequence in result.sequences:
        with torch.no_grad():
            logits_TV = base.logits(base.hidden_states(torch.tensor([prompt + sequence.tokens]))[0])
        for step, (token, found) in enumerate(zip(sequence.tokens, sequence.logprobs, strict=True)):
            logits_V, said = logits_TV[len(prompt) - 1 + step].clone(), sequence.tokens[:step]
            for biased, value in bias:
                logits_V[biased] += value
            for seen in {*prompt, *said}:
                logits_V[seen] = logits_V[seen] / 1.4 if logits_V[seen] > 0 else logits_V[seen] * 1.4
            for seen in said:
                logits_V[seen] -= 0.3
            for seen in set(said):
                logits_V[seen] -= 0.7
            assert abs(torch.log_softmax(logits_V / 0.8, -1)[token].item() - found) < 2e-5
    assert any(40 in sequence.tokens for sequence in result.sequences)


async def test_nothing_ends_before_the_shortest_length(engine: Engine, base: BaseModel, make_job: MakeJob) -> None:
    (free,) = await run(engine, make_job(PROMPT, max_tokens=30))
    tokens = free.sequences[0].tokens
    string = base.text(tokens[2:4])
    by_token = make_job(PROMPT, max_tokens=30, min_tokens=10, stop_tokens=frozenset({tokens[3], tokens[20]}))
    by_string = make_job(PROMPT, max_tokens=30, min_tokens=10, stop_strings=(string,))
    for result in await run(engine, by_token, by_string):
        assert len(result.sequences[0].tokens) > 10
    assert (await run(engine, make_job(PROMPT, max_tokens=30, stop_strings=(string,))))[0].sequences[0].tokens < tokens


@pytest.mark.parametrize(
    ("constraint", "is_match"),
    [
        (Constraint("regex", "[a-f]{3}-[0-9]{2}"), lambda text: re.fullmatch("[a-f]{3}-[0-9]{2}", text)),
        (Constraint("choice", '["left", "right", "straight on"]'), lambda text: text in CHOICES),
        (Constraint("grammar", 'start: ("ab" | "cd") "!"'), lambda text: text in ("ab!", "cd!")),
        (Constraint("json_schema", SCHEMA), lambda text: -1 < len(json.loads(text)["list"]) < 3),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
async def test_a_constraint_is_kept(
    engine: Engine, base: BaseModel, make_job: MakeJob, constraint: Constraint, is_match: Callable[[str], object]
) -> None:
    grammars = Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)
    grammar = await grammars.compiled(constraint)
    changes = {"constraint": constraint, "grammar": grammar, "stop_tokens": frozenset(base.eos_token_ids)}
    (result,) = await run(engine, make_job(PROMPT, num_samples=6, max_tokens=200, **changes), slots=[1])
    for sequence in result.sequences:
        assert sequence.stop_reason == "stop"
        assert sequence.tokens[-1] in base.eos_token_ids
        assert is_match(base.text(sequence.tokens[:-1])), base.text(sequence.tokens)


async def test_what_remembers_its_text_ends_well_over_a_switch(
    engine: Engine, base: BaseModel, make_job: MakeJob
) -> None:
    """Whether it is switched or ends on the old weights: its tokens say which."""
    constraint = Constraint("regex", "[a-f]{40}")
    grammars = Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)
    changes = {
        "constraint": constraint,
        "grammar": await grammars.compiled(constraint),
        "stop_tokens": frozenset(base.eos_token_ids),
    }
    async with engine.sampling(
        make_job(PROMPT, max_tokens=100, **changes), slot=1, version=1, streams=True
    ) as sampling:
        async for _ in sampling:
            break
        await sampling.switch(slot=2, version=2)
        (sequence,) = (await sampling.result()).sequences
    assert re.fullmatch("[a-f]{40}", base.text(sequence.tokens[:-1]))
    assert len(sequence.policy_versions) in (0, len(sequence.tokens))


async def test_what_streams_is_what_the_result_says(engine: Engine, make_job: MakeJob) -> None:
    job = make_job(PROMPT, num_samples=3, max_tokens=20, num_topk=2)
    collected: dict[int, list[SampleDelta]] = {}
    num_events = 0
    async with engine.sampling(job, slot=1, version=7, streams=True) as sampling:
        async for deltas in sampling:
            num_events += 1
            for delta in deltas:
                collected.setdefault(delta.index, []).append(delta)
        result = await sampling.result()
    assert sorted(collected) == [0, 1, 2]
    assert num_events > 3
    for index, sequence in enumerate(result.sequences):
        whole = joined(collected[index])
        assert (whole.tokens, whole.logprobs) == (sequence.tokens, sequence.logprobs)
        assert whole.policy_versions == [7] * 20
        assert [delta.stop_reason for delta in collected[index]][-1:] == ["length"]
        assert whole.topk is not None
        assert sequence.topk is not None
        assert whole.topk.ids.tolist() == sequence.topk.ids.tolist()
    alone = await engine.sample(job, slot=1)
    assert tokens_of([alone]) == tokens_of([result])


async def test_leaving_and_cancelling_free_what_a_job_holds(subject: Subject, make_job: MakeJob) -> None:
    job = make_job(PROMPT, num_samples=8, max_tokens=1500)
    async with subject.engine.sampling(job, slot=0, streams=True) as sampling:
        async for _ in sampling:
            break
    task = asyncio.create_task(subject.engine.sample(job, slot=0))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        while not subject.is_idle():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert subject.engine.is_alive
    await run(subject.engine, make_job(PROMPT))


async def test_switched_sequences_label_each_token(engine: Engine, make_job: MakeJob) -> None:
    job = make_job(PROMPT, max_tokens=300, num_samples=2)
    old = await engine.sample(job, slot=1)
    async with engine.sampling(job, slot=1, version=1, streams=True) as sampling:
        async for _ in sampling:
            break
        await sampling.switch(slot=2, version=2)
        result = await sampling.result()
    for before, sequence in zip(old.sequences, result.sequences, strict=True):  # one may not have begun before
        first_new = sequence.policy_versions.index(2)
        assert sequence.policy_versions == [1] * first_new + [2] * (300 - first_new)
        assert len(sequence.logprobs) == 300
        assert sequence.tokens[:first_new] == before.tokens[:first_new]
        assert sequence.tokens != before.tokens


async def test_a_switch_of_one_that_is_done_or_not_watched_is_no_mistake(engine: Engine, make_job: MakeJob) -> None:
    async with engine.sampling(make_job(PROMPT, max_tokens=2), slot=1, version=1) as sampling:
        result = await sampling.result()
        await sampling.switch(slot=2, version=2)
    assert result.sequences[0].policy_versions == []
    async with engine.sampling(make_job(PROMPT, max_tokens=400), slot=1, version=1) as sampling:
        await asyncio.sleep(0.1)
        await sampling.switch(slot=2, version=2)
        result = await sampling.result()
    assert len(result.sequences[0].tokens) == 400


async def test_broken_weights_fail_their_own_requests_only(
    engine: Engine, make_adapter: MakeAdapter, make_job: MakeJob
) -> None:
    expected = await run(engine, make_job(PROMPT, max_tokens=20), slots=[1])
    await engine.load(4, make_adapter(8, scale=1e18))  # finite, but nothing it computes is
    broken, well = await asyncio.gather(
        engine.sample(make_job(PROMPT, num_samples=3, max_tokens=20), slot=4),
        engine.sample(make_job(PROMPT, max_tokens=20), slot=1),
        return_exceptions=True,
    )
    assert isinstance(broken, ModelError)
    assert isinstance(well, SampleResult)
    assert tokens_of([well]) == tokens_of(expected)
    assert tokens_of(await run(engine, make_job(PROMPT, max_tokens=20), slots=[1])) == tokens_of(expected)


async def test_many_jobs_at_once_all_end(engine: Engine, make_job: MakeJob, prompts: Prompts) -> None:
    jobs = [make_job(prompts[i % 12], max_tokens=1 + i % 7, seed=i, num_samples=1 + i % 3) for i in range(300)]
    results = await run(engine, *jobs, slots=[i % 4 for i in range(300)])
    for job, result in zip(jobs, results, strict=True):
        assert [len(sequence.tokens) for sequence in result.sequences] == [job.max_tokens] * job.num_samples
