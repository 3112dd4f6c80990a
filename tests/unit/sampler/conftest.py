"""A small model with adapters, and jobs to sample from it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
import torch

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_base_model
from farstep_model.lora import LoraLayers
from farstep_model.spec import LoraSpec
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.request import NO_TOP_K, SampleJob
from farstep_sampler.result import SampleResult

NUM_SLOTS = 4

MakeAdapter = Callable[..., Adapter]
MakeJob = Callable[..., SampleJob]
RunJobs = Callable[..., list[SampleResult]]


Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture(scope="session")
def until() -> Until:
    """Waits for a condition that nothing announces, 10 seconds at most."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base() -> BaseModel:
    return load_base_model(device="cpu")


@pytest.fixture(scope="session")
def layers(base: BaseModel) -> LoraLayers:
    return LoraLayers.install(base)


@pytest.fixture(scope="session")
def make_adapter(layers: LoraLayers) -> MakeAdapter:
    """An adapter that really changes the model; the seed decides how."""

    def make(seed: int, *, rank: int = 4, scale: float = 0.1) -> Adapter:
        adapter = Adapter.init(layers, LoraSpec(rank=rank), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        return adapter

    return make


@pytest.fixture
def table(layers: LoraLayers) -> AdapterTable:
    return AdapterTable(layers, num_slots=NUM_SLOTS)


@pytest.fixture
def engine(base: BaseModel, table: AdapterTable, make_adapter: MakeAdapter) -> TorchEngine:
    """An engine with adapters of seed s in slots s = 1, 2, 3; slot 0 is the base."""
    made = TorchEngine(base, table, max_rows=32, budget_tokens=1 << 15)
    for slot in (1, 2, 3):
        made.load(slot, make_adapter(slot))
    return made


@pytest.fixture(scope="session")
def make_job() -> MakeJob:
    """A job for a prompt; 12 tokens at temperature 1 unless said otherwise, ended by nothing."""

    def make(prompt: list[int], **changes: object) -> SampleJob:
        settings: dict[str, object] = {
            "prompt": np.array(prompt, dtype=np.int32),
            "num_samples": 1,
            "max_tokens": 12,
            "temperature": 1.0,
            "top_k": NO_TOP_K,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": 1,
            "stop_tokens": frozenset(),
            "stop_strings": (),
            "wants_prompt_logprobs": False,
            "num_prompt_topk": 0,
            "num_topk": 0,
        }
        return SampleJob(**(settings | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def run_jobs() -> RunJobs:
    """All jobs from one moment on, to the end; the first failure is raised."""

    def run(engine: TorchEngine, jobs: list[SampleJob], slots: list[int] | None = None) -> list[SampleResult]:
        for ticket, job in enumerate(jobs):
            engine.submit(ticket, job, slot=slots[ticket] if slots else 0)
        outcomes: dict[int, SampleResult] = {}
        while engine.has_work:
            for finished in engine.step():
                if isinstance(finished.outcome, Exception):
                    raise finished.outcome
                outcomes[finished.ticket] = finished.outcome
        return [outcomes[ticket] for ticket in range(len(jobs))]

    return run


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Twelve prompts of 1 to 39 tokens."""
    generator = np.random.default_rng(0)
    lengths = [1, 2, *generator.integers(3, 40, 10).tolist()]
    return [generator.integers(3, 380, length).tolist() for length in lengths]
