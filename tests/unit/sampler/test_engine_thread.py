"""The engine from the event loop: results, tokens as they come, slow and vanished readers, switched weights."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from farstep_model.adapter import Adapter
from farstep_proto.errors import Internal, ModelError
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleDelta, joined

MakeJob = Callable[..., SampleJob]
MakeAdapter = Callable[..., Adapter]
Until = Callable[[Callable[[], bool]], Awaitable[None]]

PROMPT = [5, 6, 7, 8, 9]


@pytest_asyncio.fixture
async def thread(engine: TorchEngine) -> AsyncIterator[EngineThread]:
    made = EngineThread(engine)
    made.start()
    yield made
    await made.close()


async def test_what_streams_is_what_the_result_says(thread: EngineThread, make_job: MakeJob) -> None:
    job = make_job(PROMPT, num_samples=3, max_tokens=20, num_topk=2)
    collected: dict[int, list[SampleDelta]] = {}
    num_events = 0
    async with thread.sampling(job, slot=1, version=7, streams=True) as sampling:
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
        assert whole.stop_reason == sequence.stop_reason
        assert [delta.stop_reason for delta in collected[index][:-1]] == [None] * (len(collected[index]) - 1)
        assert whole.topk is not None
        assert sequence.topk is not None
        assert whole.topk.ids.tolist() == sequence.topk.ids.tolist()
        assert whole.topk.logprobs.tolist() == sequence.topk.logprobs.tolist()
    alone = await thread.sample(job, slot=1)
    assert [s.tokens for s in alone.sequences] == [s.tokens for s in result.sequences]


async def test_a_slow_reader_gets_everything_in_one_event(thread: EngineThread, make_job: MakeJob) -> None:
    async with thread.sampling(make_job(PROMPT, max_tokens=30), slot=0, streams=True) as sampling:
        result = await sampling.result()
        ((delta,),) = [deltas async for deltas in sampling]
    assert delta.tokens == result.sequences[0].tokens
    assert delta.stop_reason == "length"


async def test_leaving_the_block_frees_the_rows(
    thread: EngineThread, engine: TorchEngine, make_job: MakeJob, until: Until
) -> None:
    async with thread.sampling(make_job(PROMPT, num_samples=8, max_tokens=1500), slot=0, streams=True) as sampling:
        async for _ in sampling:
            break
    await until(lambda: not engine.has_work)
    assert thread.is_alive


async def test_a_cancelled_task_frees_the_rows(
    thread: EngineThread, engine: TorchEngine, make_job: MakeJob, until: Until
) -> None:
    task = asyncio.create_task(thread.sample(make_job(PROMPT, max_tokens=1500), slot=0))
    await until(lambda: engine.has_work)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not engine.has_work)


async def test_a_failure_reaches_the_reader(thread: EngineThread, make_adapter: MakeAdapter, make_job: MakeJob) -> None:
    await thread.load(4, make_adapter(8, scale=1e18))
    async with thread.sampling(make_job(PROMPT), slot=4, streams=True) as sampling:
        with pytest.raises(ModelError, match="not finite"):
            async for _ in sampling:
                pass
        with pytest.raises(ModelError):
            await sampling.result()


async def test_switched_sequences_label_each_token(thread: EngineThread, make_job: MakeJob) -> None:
    old = await thread.sample(make_job(PROMPT, max_tokens=200), slot=1)
    async with thread.sampling(make_job(PROMPT, max_tokens=200), slot=1, version=1, streams=True) as sampling:
        async for _ in sampling:
            break
        await sampling.switch(slot=2, version=2)
        result = await sampling.result()
    (sequence,) = result.sequences
    first_new = sequence.policy_versions.index(2)
    assert sequence.policy_versions == [1] * first_new + [2] * (200 - first_new)
    assert sequence.tokens[:first_new] == old.sequences[0].tokens[:first_new]
    assert sequence.tokens != old.sequences[0].tokens


async def test_an_engine_that_stopped_says_so(engine: TorchEngine, make_job: MakeJob) -> None:
    thread = EngineThread(engine)
    thread.start()
    async with thread.sampling(make_job(PROMPT, max_tokens=1500), slot=0) as sampling:
        await thread.close()
        with pytest.raises(Internal, match="stopped"):
            await sampling.result()
    with pytest.raises(Internal, match="stopped"):
        await thread.sample(make_job(PROMPT), slot=0)
