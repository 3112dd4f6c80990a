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
from farstep_infra.store.policy_archive import PolicyArchive
from farstep_model.load import BaseModel, tokenizer_files
from farstep_proto.errors import Draining, Internal
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import training_pb2
from farstep_sampler.account import Account
from farstep_sampler.engines.base import Engine
from farstep_sampler.events import Events, events_of
from farstep_sampler.feed import FeedClient, FeedConfig, FeedSource
from farstep_sampler.follow import follow
from farstep_sampler.gate import Gate, Pin
from farstep_sampler.grammars import Grammars
from farstep_sampler.in_flight import Sampling
from farstep_sampler.recall import PolicySource, ShelfSource, StoreSource
from farstep_sampler.request import ModelLimits, SampleJob, Target, job_of, target_of
from farstep_sampler.result import response_of
from farstep_sampler.submissions import Work
from farstep_sampler.swapper import Swapper
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import AtLeast, VersionGate
from farstep_sampler.weight_sync import SyncConfig, WeightSyncPoller
from farstep_serving.keys import Caller

log = logging.getLogger(__name__)

DEFAULT_GATE_WAIT_S = 60.0


class Replica:
    """The backend of a sampler process.

    Args:
        engine: has as many slots as policies stay resident.
        limits: of requests; the context may be shorter than the model's where memory is.
        policies: whose policies to follow, if anyone's.
        versions_per_run: how many policies of one run stay resident.
    """

    def __init__(
        self,
        base: BaseModel,
        engine: Engine,
        *,
        limits: ModelLimits,
        store: CheckpointStore,
        policies: FeedConfig | SyncConfig | None,
        versions_per_run: int | None = None,
    ) -> None:
        self._base = base
        self._limits = limits
        self._engine = engine
        self._grammars = Grammars(base.tokenizer, vocab_size=base.vocab_size, eos_token_ids=base.eos_token_ids)
        self._table = VersionTable(num_slots=engine.num_slots, per_run=versions_per_run)
        self._gate = Gate(self._table)
        self._swapper = Swapper(
            self._table,
            self._gate,
            layers=engine.layers,
            load=self._engine.load,
            store=store,
            sources=(StoreSource(PolicyArchive(store)), *_sources(policies)),
        )
        self._policies = policies
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The engine, the swapper and whatever brings policies work inside the block."""
        self._engine.start()
        self._tasks = [asyncio.create_task(self._swapper.run(), name="swapper")]
        if self._policies is not None:
            self._tasks.append(asyncio.create_task(self._bring_policies(self._policies), name="feed"))
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
        """Takes nothing new and lets requests go that wait for a version; what is being sampled ends normally."""
        self._gate.drain()

    def prepare(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Work:
        self._check_draining()
        job = job_of(request, limits=self._limits)
        target = target_of(request, gate=gate, caller=caller, default_wait_s=DEFAULT_GATE_WAIT_S)
        return partial(self._sample, job, target, request.client_id or request.affinity_key)

    def open_stream(self, request: pb.SampleRequest, gate: VersionGate, caller: Caller) -> Events:
        self._check_draining()
        job = job_of(request, limits=self._limits)
        target = target_of(request, gate=gate, caller=caller, default_wait_s=DEFAULT_GATE_WAIT_S)
        return self._stream(job, target, request.client_id or request.affinity_key)

    async def list_policies(self, caller: Caller, *, after: int, wait_s: float) -> pb.ListPoliciesResponse:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._table.revision <= after and not self._gate.is_draining:
                    await self._gate.changed()
        return pb.ListPoliciesResponse(
            policies=[
                self._state(source)
                for source in self._table.newest_versions()
                if caller.may_see(self._table.project(source) or "")
            ],
            revision=self._table.revision,
            draining=self._gate.is_draining,
        )

    async def wait_for_policy(self, run_id: str, caller: Caller, *, min_version: int, wait_s: float) -> pb.PolicyState:
        target = Target(run_id, AtLeast(min_version), wait_s, caller=caller)
        await self._gate.admit(target)
        return self._state(run_id) if self._gate.seen(target) else pb.PolicyState(run_id=run_id)

    async def load_policy(self, model_path: str, caller: Caller) -> pb.PolicyState:
        path = str(CheckpointPath.parse(model_path, field="model_path"))
        await self._swapper.bring(path, caller)
        return self._state(path)

    async def info(self) -> training_pb2.ServerInfo:
        return training_pb2.ServerInfo(
            role="sampler",
            base_model=self._base.name,
            device=self._engine.device,
            max_seq_len=self._limits.max_seq_len,
            vocab_size=self._limits.vocab_size,
            engine=self._engine.name,
            version=version("farstep"),
            dtype=str(self._base.dtype).removeprefix("torch."),
        )

    async def tokenizer(self) -> training_pb2.TokenizerFiles:
        return await asyncio.to_thread(tokenizer_files, self._base.path)

    def check_health(self) -> None:
        self._check_draining()
        ended = [task.get_name() for task in self._tasks if task.done()]
        if not self._engine.is_alive:
            ended.append("engine")
        if ended:
            raise Internal(f"the {ended[0]} has stopped", hint="restart the sampler; its log has the reason")

    async def _sample(self, job: SampleJob, target: Target, client: str) -> pb.SampleResponse:
        async with self._under_way(job, target, client) as (sampling, version):
            return response_of(await sampling.result(), policy_version=version)

    async def _stream(self, job: SampleJob, target: Target, client: str) -> Events:
        async with (
            self._under_way(job, target, client, streams=True) as (sampling, version),
            contextlib.aclosing(events_of(sampling, version=version)) as events,
        ):
            async for event in events:
                yield event

    @contextlib.asynccontextmanager
    async def _under_way(
        self, job: SampleJob, target: Target, client: str, *, streams: bool = False
    ) -> AsyncIterator[tuple[Sampling, int]]:
        """The job on the engine, and the version that it begins with, once both are there; ended with the block."""
        if job.constraint is not None:
            job = replace(job, grammar=await self._grammars.compiled(job.constraint, asker=target.caller.project))
        if target.is_checkpoint:
            serve = await self._swapper.bring(target.source, target.caller)
        else:
            serve = await self._gate.admit(target)
        version = serve.policy.version
        account = self._account(target, client)
        with self._gate.pinned(serve.policy) as pin:
            async with self._engine.sampling(
                job, slot=serve.slot, version=version, account=account, streams=streams
            ) as sampling:
                following = self._following(sampling, pin, target)
                try:
                    yield sampling, version
                finally:
                    for task in following:
                        task.cancel()
                    await asyncio.gather(*following, return_exceptions=True)

    def _following(self, sampling: Sampling, pin: Pin, target: Target) -> list[asyncio.Task[None]]:
        """The task that has a job go on with newer versions, where that was asked for."""
        if not target.follows:
            return []
        work = follow(sampling, pin, target=target, table=self._table, gate=self._gate)
        task = asyncio.create_task(work, name="switch to newer versions")
        task.add_done_callback(_log_end)
        return [task]

    def _account(self, target: Target, client: str) -> Account:
        """A run that its caller may not see has no part in it: that job is the base model's. What is public is sampled
        on the account of who asks.
        """
        asker = target.caller.project
        source = target.source if target.is_checkpoint else self._gate.seen(target)
        run_id = CheckpointPath.parse(source).run_id if target.is_checkpoint else source
        owner = self._table.project(source) or ""
        return Account(asker, client, owner if owner and target.caller.may_see(owner) else asker, run_id)

    def _state(self, source: str) -> pb.PolicyState:
        is_checkpoint = "://" in source
        return pb.PolicyState(
            run_id="" if is_checkpoint else source,
            model_path=source if is_checkpoint else "",
            newest_version=self._table.newest_ready(source),
            resident_versions=self._table.resident_versions(source),
            project=self._table.project(source) or "",
        )

    def _check_draining(self) -> None:
        if self._gate.is_draining:
            raise Draining("this sampler takes nothing new", retry_after_s=1.0)

    async def _bring_policies(self, policies: FeedConfig | SyncConfig) -> None:
        """Brings policies for ever."""
        match policies:
            case FeedConfig():
                await FeedClient(
                    policies, have=self._have, deliver=self._swapper.offer, history=self._table.history
                ).run()
            case SyncConfig(shelves, interval_s):
                await WeightSyncPoller(shelves, deliver=self._swapper.offer_files, interval_s=interval_s).run()

    def _have(self) -> dict[str, int]:
        return {source: newest for source, newest in self._table.newest_versions().items() if "://" not in source}


def _sources(policies: FeedConfig | SyncConfig | None) -> tuple[PolicySource, ...]:
    match policies:
        case FeedConfig():
            return (FeedSource(policies),)
        case SyncConfig(shelves, _):
            return (ShelfSource(shelves),)
        case None:
            return ()


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the %s has stopped", task.get_name(), exc_info=error)
