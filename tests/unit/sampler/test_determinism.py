"""The same seed gives the same tokens, and log-probabilities to the bit, whatever else the engine does.

Every job here is compared with itself alone on an engine that has never computed anything else.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel
from farstep_model.lora import LoraLayers
from farstep_model.products import HAS_ONEDNN
from farstep_sampler.account import Account
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

MakeJob = Callable[..., SampleJob]
MakeAdapter = Callable[..., Adapter]
Outcome = list[tuple[list[int], list[float]]]

pytestmark = pytest.mark.skipif(
    not (HAS_ONEDNN and torch.backends.mkl.is_available()), reason="the bits are promised for MKL and oneDNN alone"
)

TEXT = np.random.default_rng(7).integers(3, 380, 700).tolist()
# Prefixes of one text, around the lengths at which something changes: blocks, chunks, slabs, sums.
LENGTHS = [1, 2, 5, 15, 16, 17, 33, 60, 64, 65, 120, 129, 191, 200, 250, 260, 300, 330, 380, 400, 520]
SLOTS = [0, 1, 2]


@pytest.fixture(scope="module")
def make_engine(base: BaseModel, layers: LoraLayers, make_adapter: MakeAdapter) -> Callable[..., TorchEngine]:
    def make(*, budget_tokens: int = 1 << 15, **settings: int) -> TorchEngine:
        table = AdapterTable(layers, num_slots=4)
        engine = TorchEngine(base, table, max_rows=16, budget_tokens=budget_tokens, **settings)
        for slot in (1, 2):
            engine.load(slot, make_adapter(slot))
        return engine

    return make


@pytest.fixture(scope="module")
def jobs(make_job: MakeJob) -> list[tuple[SampleJob, int]]:
    """A job for each length, with its slot."""
    return [
        (make_job(TEXT[:n], seed=n, num_samples=1 + n % 3, max_tokens=4 + n % 37, top_p=0.9 if n % 2 else 1.0), i % 3)
        for i, n in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def alone(make_engine: Callable[..., TorchEngine], jobs: list[tuple[SampleJob, int]]) -> list[Outcome]:
    return [drive(make_engine(), [(0, job, slot)])[0] for job, slot in jobs]


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def drive(engine: TorchEngine, arrivals: list[tuple[int, SampleJob, int]]) -> list[Outcome]:
    """Runs jobs that arrive at given steps to their ends."""
    outcomes: dict[int, Outcome] = {}
    step = 0
    while len(outcomes) < len(arrivals):
        for ticket, (when, job, slot) in enumerate(arrivals):
            if when == step:
                engine.submit(ticket, job, slot=slot, account=Account(client=str(ticket % 3)))
        for finished in engine.step():
            assert isinstance(finished.outcome, SampleResult), finished.outcome
            outcomes[finished.ticket] = [(s.tokens, s.logprobs) for s in finished.outcome.sequences]
        step += 1
    return [outcomes[ticket] for ticket in range(len(arrivals))]


@settings(max_examples=12, deadline=None)
@given(
    chosen=st.lists(st.tuples(st.integers(0, len(LENGTHS) - 1), st.integers(0, 25)), min_size=1, max_size=9),
    budget_tokens=st.sampled_from([1024, 4096, 1 << 15]),
    prefix_tokens=st.sampled_from([0, 64, 1024, 1 << 15]),
    chunk=st.sampled_from([64, 100, 2048]),
)
def test_arrivals_company_chunks_memory_and_cached_prefixes_change_no_bit(
    make_engine: Callable[..., TorchEngine],
    jobs: list[tuple[SampleJob, int]],
    alone: list[Outcome],
    chosen: list[tuple[int, int]],
    budget_tokens: int,
    prefix_tokens: int,
    chunk: int,
) -> None:
    """`chosen` are jobs, each with the step at which it arrives."""
    engine = make_engine(budget_tokens=budget_tokens, prefix_tokens=prefix_tokens)
    engine._chunk = chunk  # what a faster or slower machine would begin with
    arrivals = [(when, *jobs[index]) for index, when in chosen]
    for repeat in range(2):  # the second time with whatever the first left in the prefix cache
        assert drive(engine, arrivals) == [alone[index] for index, _ in chosen], repeat
    assert not engine.has_work
    assert engine.held_tokens == 0


@pytest.mark.usefixtures("_threads")
def test_everything_at_once(
    make_engine: Callable[..., TorchEngine], jobs: list[tuple[SampleJob, int]], alone: list[Outcome]
) -> None:
    engine = make_engine()
    for _ in range(2):
        assert drive(engine, [(0, *job) for job in jobs]) == alone


def test_a_conversation_goes_on_from_what_was_sampled(
    make_engine: Callable[..., TorchEngine], make_job: MakeJob
) -> None:
    engine = make_engine()
    prompt = TEXT[:100]
    for turn in range(4):
        job = make_job(prompt, seed=turn, max_tokens=90)
        engine.submit(turn, job, slot=1)
        (result,) = [f.outcome for _ in range(200) for f in engine.step()]
        assert isinstance(result, SampleResult)
        # Everything but the last sampled token and this turn's own is there, in whole blocks.
        assert result.num_cached == (len(prompt) - 21) // 16 * 16 * (turn > 0)
        ((tokens, logprobs),) = drive(make_engine(), [(0, job, 1)])[0]
        assert (result.sequences[0].tokens, result.sequences[0].logprobs) == (tokens, logprobs)
        prompt = prompt + tokens + TEXT[200 + turn * 20 : 220 + turn * 20]


def test_no_prefix_of_other_weights_is_ever_used(
    make_engine: Callable[..., TorchEngine], make_adapter: MakeAdapter, make_job: MakeJob
) -> None:
    engine, job = make_engine(), make_job(TEXT[:200])
    cold = {slot: drive(make_engine(), [(0, job, slot)]) for slot in SLOTS}
    for slot in SLOTS:
        assert drive(engine, [(0, job, slot)]) == cold[slot]
    engine.load(1, make_adapter(2))
    engine.submit(0, job, slot=1)
    (result,) = [f.outcome for _ in range(50) for f in engine.step()]
    assert isinstance(result, SampleResult)
    assert result.num_cached == 0
    assert [(s.tokens, s.logprobs) for s in result.sequences] == cold[2][0]
