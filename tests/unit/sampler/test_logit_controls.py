"""What requests change in their logits, through the engine: against a plain forward pass and a naive reference."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from farstep_model.load import BaseModel
from farstep_proto.errors import InvalidInput
from farstep_sampler.constraint import Constraint
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.grammars import Grammars
from farstep_sampler.penalties import Penalties
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

MakeJob = Callable[..., SampleJob]
RunJobs = Callable[..., list[SampleResult]]
Guided = Callable[..., SampleJob]
Prompts = list[list[int]]


def penalties_for(prompt: list[int], *, presence: float = 0.0, frequency: float = 0.0, repetition: float = 1.0):
    counted = np.unique(np.array(prompt if repetition != 1 else [], dtype=np.int32))
    return Penalties(presence, frequency, repetition, counted)


def expected_logits(base: BaseModel, job: SampleJob, generated: list[int]) -> torch.Tensor:
    """[V], from one forward pass over everything, with bias and penalties worked out token by token."""
    prompt = job.prompt.tolist()
    with torch.no_grad():
        logits = base.logits(base.hidden_states(torch.tensor([prompt + generated]))[0, -1:])[0].double()
    for token, bias in job.logit_bias:
        logits[token] += bias
    if job.penalties is not None:
        for token in {*generated, *(prompt if job.penalties.repetition != 1 else [])}:
            repetition = job.penalties.repetition
            logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
        for token, count in Counter(generated).items():
            logits[token] -= job.penalties.frequency * count + job.penalties.presence
    if len(generated) < job.min_tokens:
        logits[list(job.stop_tokens)] = -math.inf
    return logits


def worst_difference(base: BaseModel, job: SampleJob, result: SampleResult) -> float:
    worst = 0.0
    for sequence in result.sequences:
        for step, token in enumerate(sequence.tokens):
            logits = expected_logits(base, job, sequence.tokens[:step])
            expected = torch.log_softmax(logits / (job.temperature or 1.0), -1)[token].item()
            worst = max(worst, abs(expected - sequence.logprobs[step]))
    return worst


@pytest.fixture
def jobs(make_job: MakeJob, prompts: Prompts) -> list[SampleJob]:
    """Every third asks for nothing, and they end at different times."""
    made = []
    for index, prompt in enumerate(prompts):
        controls: dict[str, object] = {"seed": index, "num_samples": 2, "max_tokens": 10 + 2 * index}
        match index % 3:
            case 0:
                controls["penalties"] = penalties_for(prompt, presence=0.7, frequency=0.4, repetition=1.0 + index / 10)
                controls["logit_bias"] = ((7, 3.5), (9 + index, -100.0))
            case 1:
                controls |= {"penalties": penalties_for(prompt, frequency=-0.8), "temperature": 0.7}
                controls |= {"stop_tokens": frozenset(range(500)), "min_tokens": 5 + index}
        made.append(make_job(prompt, **controls))
    return made


def test_log_probabilities_are_those_of_the_changed_logits(
    engine: TorchEngine, base: BaseModel, run_jobs: RunJobs, jobs: list[SampleJob]
) -> None:
    """fp32 in the engine against fp64 after the model, as in the test of plain sampling."""
    for job, result in zip(jobs, run_jobs(engine, jobs), strict=True):
        assert worst_difference(base, job, result) < 1e-5
        for sequence in result.sequences:
            assert sequence.stop_reason == "length" or len(sequence.tokens) > job.min_tokens
    changed, result = jobs[9], run_jobs(engine, [jobs[9]])[0]
    assert worst_difference(base, replace(changed, penalties=None), result) > 1e-2
    assert worst_difference(base, replace(changed, logit_bias=()), result) > 1e-2


def test_company_changes_nothing_and_a_small_cache_loses_nothing(
    base: BaseModel, table: AdapterTable, engine: TorchEngine, run_jobs: RunJobs, jobs: list[SampleJob]
) -> None:
    together = run_jobs(engine, jobs)
    tight = TorchEngine(base, table, max_rows=32, budget_tokens=640)
    squeezed = run_jobs(tight, jobs)
    for job, result, again in zip(jobs, together, squeezed, strict=True):
        (alone,) = run_jobs(engine, [job])
        for x, y, z in zip(alone.sequences, result.sequences, again.sequences, strict=True):
            assert x.tokens == y.tokens == z.tokens
            np.testing.assert_allclose(x.logprobs, y.logprobs, atol=1e-6)


def test_those_who_ask_for_nothing_get_the_same_bits(
    engine: TorchEngine, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    plain = [make_job(prompt, seed=index) for index, prompt in enumerate(prompts)]
    loud = make_job(prompts[2], penalties=penalties_for(prompts[2], presence=2.0), logit_bias=((5, 100.0),), seed=99)
    among = run_jobs(engine, [*plain[:6], loud, *plain[6:]])
    for alone, found in zip(run_jobs(engine, plain), among[:6] + among[7:], strict=True):
        assert alone.sequences[0].tokens == found.sequences[0].tokens
        assert alone.sequences[0].logprobs == found.sequences[0].logprobs
    assert set(among[6].sequences[0].tokens) == {5}


def test_greedy_takes_the_best_of_the_changed_logits(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    prompt = prompts[5]
    job = make_job(prompt, temperature=0.0, penalties=penalties_for(prompt, frequency=2.0, repetition=1.3))
    (result,) = run_jobs(engine, [job])
    tokens = result.sequences[0].tokens
    for step, token in enumerate(tokens):
        assert token == expected_logits(base, job, tokens[:step]).argmax()
    assert tokens != run_jobs(engine, [replace(job, penalties=None)])[0].sequences[0].tokens


def test_a_stop_string_counts_only_after_min_tokens(
    engine: TorchEngine, base: BaseModel, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    free = run_jobs(engine, [make_job(prompts[6], max_tokens=30)])[0].sequences[0]
    string = base.tokenizer.decode(free.tokens[3:5])
    stopped, later = (
        run_jobs(engine, [make_job(prompts[6], max_tokens=30, stop_strings=(string,), min_tokens=num)])[0].sequences[0]
        for num in (0, 10)
    )
    assert len(stopped.tokens) <= 5
    assert stopped.stop_reason == "stop"
    assert later.tokens == free.tokens[: len(later.tokens)]
    assert len(later.tokens) > 10


# Guided


@pytest.fixture(scope="module")
def grammars(base: BaseModel) -> Grammars:
    return Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)


@pytest.fixture
def guided(make_job: MakeJob, grammars: Grammars, base: BaseModel) -> Guided:
    def make(prompt: list[int], kind: str, text: str, **changes: object) -> SampleJob:
        constraint = Constraint(kind, text)  # type: ignore[arg-type]
        grammar = asyncio.run(grammars.compiled(constraint))
        settings = {"max_tokens": 60, "stop_tokens": frozenset(base.eos_token_ids)} | changes
        return make_job(prompt, constraint=constraint, grammar=grammar, **settings)

    return make


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 999}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
)


def test_rows_with_grammars_of_their_own(
    base: BaseModel,
    table: AdapterTable,
    engine: TorchEngine,
    guided: Guided,
    make_job: MakeJob,
    run_jobs: RunJobs,
    prompts: Prompts,
) -> None:
    asked: list[SampleJob] = []
    for index, prompt in enumerate(prompts):
        kinds = [("json_schema", SCHEMA), ("regex", "[0-9]{2}(ab)+"), ("choice", '["red", "green", "blue"]')]
        if index % 4 < 3:
            asked.append(guided(prompt, *kinds[index % 4], seed=index, num_samples=3))
        else:
            asked.append(make_job(prompt, seed=index, max_tokens=40))
    results = run_jobs(engine, asked)
    num_ended = 0
    for index, (job, result) in enumerate(zip(asked, results, strict=True)):
        assert len({tuple(sequence.tokens) for sequence in result.sequences}) > 1 or index % 4 >= 2
        for sequence in result.sequences:
            if job.constraint is None or sequence.stop_reason == "length":
                continue
            num_ended += 1
            assert sequence.tokens[-1] in base.eos_token_ids
            text = base.tokenizer.decode(sequence.tokens[:-1])
            match index % 4:
                case 0:
                    value = json.loads(text)
                    assert isinstance(value["ok"], bool)
                    assert 0 <= value["n"] <= 999
                case 1:
                    assert text[:2].isdigit()
                    assert set(text[2:]) == {"a", "b"}
                case 2:
                    assert text in ("red", "green", "blue")
    assert num_ended > 20
    tight = TorchEngine(base, table, max_rows=32, budget_tokens=640)
    for result, again in zip(results, run_jobs(tight, asked), strict=True):
        assert [x.tokens for x in result.sequences] == [x.tokens for x in again.sequences]


def test_a_cut_text_says_so(engine: TorchEngine, guided: Guided, run_jobs: RunJobs, prompts: Prompts) -> None:
    (result,) = run_jobs(engine, [guided(prompts[3], "json_schema", SCHEMA, max_tokens=4)])
    assert result.sequences[0].stop_reason == "length"


def test_impossible_candidates_are_no_candidates(
    engine: TorchEngine, guided: Guided, run_jobs: RunJobs, prompts: Prompts
) -> None:
    (result,) = run_jobs(engine, [guided(prompts[3], "regex", "a", num_topk=3)])
    topk = result.sequences[0].topk
    assert topk is not None
    assert topk.ids[0].tolist()[1:] == [-1, -1]
    assert topk.ids[0, 0] == result.sequences[0].tokens[0]
    assert result.sequences[0].logprobs == [0.0, 0.0]


def test_bias_and_a_shortest_length_yield_to_the_grammar(
    engine: TorchEngine, base: BaseModel, guided: Guided, run_jobs: RunJobs, prompts: Prompts
) -> None:
    banned = tuple((token, -100.0) for token in base.tokenizer.encode("a"))
    jobs = [
        guided(prompts[3], "regex", "aaa", min_tokens=30, logit_bias=banned),
        guided(prompts[3], "regex", "[0-9]+", min_tokens=20),
    ]
    short, long = (result.sequences[0] for result in run_jobs(engine, jobs))
    assert base.tokenizer.decode(short.tokens[:-1]) == "aaa"
    assert long.stop_reason == "length" or len(long.tokens) > 20


def test_a_grammar_that_fails_costs_its_own_request_only(
    engine: TorchEngine, guided: Guided, make_job: MakeJob, run_jobs: RunJobs, prompts: Prompts
) -> None:
    (expected,) = run_jobs(engine, [make_job(prompts[4], max_tokens=20)])
    text = 'start: "x" ' + " ".join("x?" for _ in range(2500)) + '\nx: "y"'  # too many parses after "x"
    engine.submit(0, guided(prompts[3], "grammar", text, num_samples=2), slot=0)
    engine.submit(1, make_job(prompts[4], max_tokens=20), slot=0)
    outcomes = {}
    while engine.has_work:
        outcomes |= {finished.ticket: finished.outcome for finished in engine.step()}
    assert isinstance(outcomes[0], InvalidInput)
    assert outcomes[0].field == "params.grammar"
    assert isinstance(outcomes[1], SampleResult)
    assert outcomes[1].sequences[0].tokens == expected.sequences[0].tokens
