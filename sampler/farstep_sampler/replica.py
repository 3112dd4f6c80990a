"""A replica: one engine, its policies, and the requests that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.load import BaseModel, tokenizer_files
from farstep_proto.errors import Internal
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.engine_thread import EngineThread
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.feed import FeedClient, FeedConfig
from farstep_sampler.gate import Gate
from farstep_sampler.grammars import Grammars
from farstep_sampler.request import ModelLimits, SampleJob, Target, job_of, target_of
from farstep_sampler.result import response_of
from farstep_sampler.submissions import Work
from farstep_sampler.swapper import Swapper
from farstep_sampler.versions import AtLeast, VersionGate, VersionTable

log = logging.getLogger(__name__)

DEFAULT_GATE_WAIT_S = 60.0


class Replica:
    """The backend of a sampler process.

    Args:
        adapters: of the base model's layers; as many slots as policies stay resident.
        limits: of requests; the context may be shorter than the model's where memory is.
        feed: whose policies to follow, if anyone's.
    """

    def __init__(
        self,
        base: BaseModel,
        engine: TorchEngine,
        adapters: AdapterTable,
        *,
        limits: ModelLimits,
        store: CheckpointStore,
        feed: FeedConfig | None,
    ) -> None:
        self._base = base
        self._limits = limits
        self._engine = EngineThread(engine)
        self._grammars = Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)
        self._table = VersionTable(num_slots=adapters.num_slots)
        self._gate = Gate(self._table)
        self._swapper = Swapper(self._table, self._gate, layers=adapters.layers, load=self._engine.load, store=store)
        self._feed = FeedClient(feed, have=self._have, deliver=self._swapper.offer) if feed is not None else None
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The engine, the swapper and the feed work inside the block."""
        self._engine.start()
        self._tasks = [asyncio.create_task(self._swapper.run(), name="swapper")]
        if self._feed is not None:
            self._tasks.append(asyncio.create_task(self._feed.run(), name="feed"))
        for task in self._tasks:
            task.add_done_callback(_log_end)
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._engine.close()

    def drain(self) -> None:
        """Lets requests go that wait for a version; those that are being sampled end normally."""
        self._gate.drain()

    def prepare(self, request: pb.SampleRequest, gate: VersionGate) -> Work:
        job = job_of(request, limits=self._limits)
        target = target_of(request, gate=gate, default_wait_s=DEFAULT_GATE_WAIT_S)
        return partial(self._sample, job, target)

    async def list_policies(self) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse(policies=[self._state(source) for source in self._table.newest_versions()])

    async def wait_for_policy(self, run_id: str, *, min_version: int, wait_s: float) -> pb.PolicyState:
        await self._gate.admit(Target(run_id, AtLeast(min_version), wait_s))
        return self._state(run_id)

    async def load_policy(self, model_path: str) -> pb.PolicyState:
        path = str(CheckpointPath.parse(model_path, field="model_path"))
        await self._swapper.bring(path)
        return self._state(path)

    async def info(self) -> training_pb2.ServerInfo:
        return training_pb2.ServerInfo(
            role="sampler",
            base_model=self._base.name,
            device=str(self._base.device),
            max_seq_len=self._limits.max_seq_len,
            vocab_size=self._limits.vocab_size,
            engine="torch",
            version=version("farstep"),
            dtype=str(self._base.dtype).removeprefix("torch."),
        )

    async def tokenizer(self) -> training_pb2.TokenizerFiles:
        return await asyncio.to_thread(tokenizer_files, self._base.path)

    def check_health(self) -> None:
        ended = [task.get_name() for task in self._tasks if task.done()]
        if not self._engine.is_alive:
            ended.append("engine")
        if ended:
            raise Internal(f"the {ended[0]} has stopped", hint="restart the sampler; its log has the reason")

    async def _sample(self, job: SampleJob, target: Target) -> pb.SampleResponse:
        if job.constraint is not None:
            job = replace(job, grammar=await self._grammars.compiled(job.constraint))
        if target.is_checkpoint:
            serve = await self._swapper.bring(target.source)
        else:
            serve = await self._gate.admit(target)
        with self._gate.pinned(serve.policy):
            result = await self._engine.sample(job, slot=serve.slot)
        return response_of(result, policy_version=serve.policy.version)

    def _state(self, source: str) -> pb.PolicyState:
        is_checkpoint = "://" in source
        return pb.PolicyState(
            run_id="" if is_checkpoint else source,
            model_path=source if is_checkpoint else "",
            newest_version=self._table.newest_ready(source),
            resident_versions=self._table.resident_versions(source),
        )

    def _have(self) -> dict[str, int]:
        return {source: newest for source, newest in self._table.newest_versions().items() if "://" not in source}


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the %s has stopped", task.get_name(), exc_info=error)
