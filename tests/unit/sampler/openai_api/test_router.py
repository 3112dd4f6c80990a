"""The OpenAI API and native streams of a router before two real replicas, of which one dies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest_asyncio

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import load_base_model
from farstep_model.lora import LoraLayers
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.replica import Replica
from farstep_sampler.request import ModelLimits
from farstep_sampler.router.backend import Router
from farstep_sampler.router.link import ReplicaLink
from tests.unit.sampler.openai_api.conftest import KEY, MODEL, serving, speaking_to


@pytest_asyncio.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    async with AsyncExitStack() as stack:
        urls = []
        for number in range(2):
            base = load_base_model(device="cpu")  # a model is one engine's
            limits = ModelLimits(base.max_seq_len, base.vocab_size, base.eos_token_ids)
            table = AdapterTable(LoraLayers.install(base), num_slots=2)
            engine = TorchEngine(base, table, max_rows=16, budget_tokens=1 << 14)
            store = CheckpointStore(tmp_path / str(number))
            replica = Replica(base, EngineThread(engine), limits=limits, store=store, policies=None)
            await stack.enter_async_context(replica.running())
            urls.append(await stack.enter_async_context(serving(replica)))
        router = Router(urls, make_link=lambda url: ReplicaLink(url, key=KEY))
        await stack.enter_async_context(router.running())
        async with asyncio.timeout(20):
            while not all(link.is_healthy for link in router.members):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield router


async def test_a_router_serves_it_as_a_replica_does(router: Router) -> None:
    async with serving(router) as url, speaking_to(url) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        messages = [{"role": "user", "content": "Hello"}]
        arguments = {"model": MODEL, "messages": messages, "max_tokens": 20, "seed": 5}
        whole = await client.chat.completions.create(**arguments)
        stream = await client.chat.completions.create(**arguments, stream=True)
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
        assert text == whole.choices[0].message.content
        direct = next(iter(router.members)).url
        async with speaking_to(direct) as straight:
            assert (await straight.chat.completions.create(**arguments)).choices[0].message.content == text


async def test_many_streams_at_once(router: Router) -> None:
    async def said(client: openai.AsyncOpenAI, seed: int, stream: bool) -> str:
        answer = await client.completions.create(
            model=MODEL, prompt="One", max_tokens=12, seed=seed, stream=stream, extra_body={"ignore_eos": True}
        )
        if not stream:
            return answer.choices[0].text
        return "".join([choice.text async for chunk in answer for choice in chunk.choices])

    async with serving(router) as url, speaking_to(url) as client:
        streamed = await asyncio.gather(*(said(client, seed, True) for seed in range(12)))
        assert streamed == [await said(client, seed, False) for seed in range(12)]
