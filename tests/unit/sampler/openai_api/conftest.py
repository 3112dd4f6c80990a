"""The OpenAI API over a real replica, and over a backend that says what the test wrote; the client is openai's own."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import pytest_asyncio
import uvicorn

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.embedded import model_dir
from farstep_model.load import BaseModel, tokenizer_files
from farstep_proto.tensors import ids_from_bytes, ids_to_bytes
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.events import Events
from farstep_sampler.openai_api.settings import OpenAiSettings
from farstep_sampler.replica import Replica
from farstep_sampler.request import ModelLimits, job_of
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions, Work
from farstep_sampler.versions import VersionGate
from farstep_serving.keys import Caller, KeyRing
from farstep_serving.process import bind, url_of

KEY = "fsk-openai"
MODEL = "farstep/tiny"
TOOLS_TEMPLATE = """{%- if tools %}<|im_start|>system
<tool_call>{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>
{% endif %}"""


@asynccontextmanager
async def serving(backend: object, **settings: object) -> AsyncIterator[str]:
    async with Submissions(max_pending=20) as submissions:
        app = make_sampler_app(backend, submissions, keys=KeyRing.of(KEY), openai=OpenAiSettings(**settings))
        sock = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        task = asyncio.create_task(server._serve(sockets=[sock]))
        try:
            yield url_of(sock)
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def speaking_to(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def replica(base: BaseModel, engine: TorchEngine, tmp_path: Path) -> AsyncIterator[Replica]:
    limits = ModelLimits(base.max_seq_len, base.vocab_size, base.eos_token_ids)
    made = Replica(base, EngineThread(engine), limits=limits, store=CheckpointStore(tmp_path / "store"), policies=None)
    async with made.running():
        yield made


@pytest_asyncio.fixture
async def url(replica: Replica) -> AsyncIterator[str]:
    async with serving(replica, served_names=["tiny"]) as url:
        yield url


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with speaking_to(url) as client:
        yield client


@pytest_asyncio.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


@dataclass
class Scripted:
    """A backend whose samples say one text each, token by token, then the end token."""

    base: BaseModel
    folder: Path
    texts: list[str] = field(default_factory=list)
    stop_reason: str = "stop"
    seen: list[pb.SampleRequest] = field(default_factory=list)
    num_open: int = 0
    pause_s: float = 0.0
    error: Exception | None = None

    def prepare(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Work:
        self._check(request)

        async def work() -> pb.SampleResponse:
            response = pb.SampleResponse(policy_version=gate.version, prompt_cache_hit_tokens=1)
            for text in self.texts:
                ids = self._ids(text)
                logprobs = np.full(len(ids), -0.5, "<f4").tobytes()
                response.sequences.add(tokens=ids_to_bytes(ids), logprobs=logprobs, stop_reason=self.stop_reason)
            return response

        return work

    def open_stream(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Events:
        self._check(request)
        return self._say(gate)

    async def _say(self, gate: VersionGate) -> Events:
        self.num_open += 1
        try:
            yield pb.SampleEvent(begin=pb.SampleBegin(policy_version=gate.version))
            for index, text in enumerate(self.texts):
                ids = self._ids(text)
                for place, token in enumerate(ids):
                    await asyncio.sleep(self.pause_s)
                    if self.error is not None and place == 2:
                        raise self.error
                    delta = pb.SampleDelta(
                        index=index,
                        tokens=ids_to_bytes([token]),
                        logprobs=np.full(1, -0.5, "<f4").tobytes(),
                        stop_reason=self.stop_reason if place == len(ids) - 1 else "",
                    )
                    yield pb.SampleEvent(delta=delta)
            yield pb.SampleEvent(end=pb.SampleEnd(prompt_cache_hit_tokens=1))
        finally:
            self.num_open -= 1

    def prompt(self) -> str:
        """The text of the last request's prompt."""
        return self.base.tokenizer.decode(ids_from_bytes(self.seen[-1].prompt.chunks[0].encoded_text.tokens).tolist())

    async def list_policies(self, caller: Caller, *, after: int, wait_s: float) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse()

    async def info(self) -> training_pb2.ServerInfo:
        base = self.base
        return training_pb2.ServerInfo(base_model=MODEL, max_seq_len=base.max_seq_len, vocab_size=base.vocab_size)

    async def tokenizer(self) -> training_pb2.TokenizerFiles:
        return tokenizer_files(str(self.folder))

    def _check(self, request: pb.SampleRequest) -> None:
        job_of(request, limits=ModelLimits(self.base.max_seq_len, self.base.vocab_size, self.base.eos_token_ids))
        self.seen.append(request)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.base.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.base.eos_token_ids[0]] if self.stop_reason == "stop" else ids


@pytest.fixture
def scripted(base: BaseModel, tmp_path: Path) -> Callable[..., Scripted]:
    """A scripted backend; its model's template knows tools, unless it is another one."""

    def make(*texts: str, template: str | None = TOOLS_TEMPLATE, **fields: object) -> Scripted:
        folder = tmp_path / "tokenizer"
        shutil.copytree(model_dir(), folder)
        path = folder / "chat_template.jinja"
        if template is None:
            path.unlink()
        else:
            path.write_text(template + path.read_text())
        return Scripted(base, folder, list(texts), **fields)

    return make
