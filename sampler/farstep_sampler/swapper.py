"""How weights get into slots while sequences run: bytes become an adapter on a worker thread, and take a slot
between two steps of the engine.

It decides nothing: the order of loads and the slots come from `version_table`. A policy that cannot be loaded is
logged and forgotten; the others go on. Of a run that publishes faster than slots are filled, the newest is loaded;
those that were passed over are fetched when somebody asks for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from farstep_infra.store.checkpoints import CheckpointStore, no_checkpoint
from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_model.peft_format import CONFIG_FILE, TENSORS_FILE
from farstep_proto.errors import InvalidInput, NotFound
from farstep_proto.names import CheckpointPath
from farstep_sampler.gate import Gate
from farstep_sampler.recall import Archive, PolicyFiles, PolicySource, RecentPolicies
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import Load, PolicyId, Serve
from farstep_serving.keys import Caller

log = logging.getLogger(__name__)

_MOST_RECALLS = 4
_RECALL_AGAIN_S = 0.5

_Build = Callable[[], Adapter]


class Swapper:
    """Brings policies from the feed and checkpoints from the store into slots.

    Args:
        load: puts an adapter into a slot; the engine's.
        sources: where a run's policy is fetched from that was retired; what came lately is remembered here.
    """

    def __init__(
        self,
        table: VersionTable,
        gate: Gate,
        *,
        layers: LoraLayers,
        load: Callable[[int, Adapter], Awaitable[None]],
        store: CheckpointStore,
        sources: tuple[PolicySource, ...] = (),
    ) -> None:
        self._table = table
        self._gate = gate
        self._layers = layers
        self._load = load
        self._store = store
        self._recent = RecentPolicies()
        self._archive = Archive((self._recent, *sources))
        self._builds: dict[PolicyId, _Build] = {}
        self._arrivals: dict[PolicyId, asyncio.Future[None]] = {}
        self._recalls: dict[PolicyId, asyncio.Task[None]] = {}
        self._recalling = asyncio.Semaphore(_MOST_RECALLS)
        self._checkpoints: dict[str, PolicyId] = {}  # path -> what it was found to be
        self._bringing: dict[str, asyncio.Task[PolicyId]] = {}
        gate.on_recall = self._recall

    async def run(self) -> None:
        """Loads whatever is announced, in that order, for ever."""
        try:
            while True:
                revision = self._table.revision
                order = self._table.next_load()
                if self._table.revision != revision:
                    self._gate.notify()
                if order is None:
                    await self._gate.changed()
                else:
                    await self._carry_out(order)
        finally:
            for task in self._recalls.values():
                task.cancel()

    def offer(self, policy: PolicyId, data: bytes) -> None:
        """Takes a run's policy as the feed brought it: `Adapter.to_bytes`."""
        self.offer_files(policy, {TENSORS_FILE: data})

    def offer_files(self, policy: PolicyId, files: PolicyFiles) -> None:
        """Takes a run's newest policy as files."""
        if self._table.history(policy.source) not in ("", policy.history):
            log.warning("the versions of %s begin anew at %d: another store, or another run", *_parts(policy))
        if self._table.announce(policy):
            self._withdraw_older(policy)
            self._recent.put(policy, files)
            self._enter(policy, partial(self._adapter_of, files))

    async def bring(self, path: str, caller: Caller) -> Serve:
        """A checkpoint of the store, loaded if it is not resident. Pin it before anything else is awaited.

        Raises:
            NotFound: no such checkpoint, or one that the caller may not know of.
            InvalidInput: it is damaged, or of another base model.
        """
        await self._check_seen(path, caller)
        while True:
            policy = self._checkpoints.get(path)
            serve = self._table.ready(policy) if policy is not None else None
            if serve is not None:
                return serve
            if path not in self._bringing:
                task = asyncio.create_task(self._bring(path))
                self._bringing[path] = task
                task.add_done_callback(lambda _: self._bringing.pop(path))
            # Shielded: others may wait for the same one.
            self._checkpoints[path] = await asyncio.shield(self._bringing[path])

    async def _check_seen(self, path: str, caller: Caller) -> None:
        """The store is asked about all but what a caller has here: others' take as long to be denied as nobody's."""
        here = self._table.project(path)
        if caller.is_operator or (here is not None and caller.may_see(here)):
            return
        checkpoint = CheckpointPath.parse(path, field="model_path")
        if not await asyncio.to_thread(self._store.may_read, checkpoint, caller.project):
            raise no_checkpoint(checkpoint)

    async def _bring(self, path: str) -> PolicyId:
        manifest, files = await asyncio.to_thread(self._store.read, CheckpointPath.parse(path, field="model_path"))
        base_model, ours = manifest.meta.get("base_model"), self._layers.base.name
        if base_model is not None and base_model != ours:
            raise InvalidInput(
                f"{path} is of base model {base_model!r}; this sampler serves {ours!r}", field="model_path"
            )
        version = manifest.meta.get("policy_version")
        number = version if isinstance(version, int) else 0
        policy = PolicyId(path, number, history=str(manifest.created_at), project=manifest.project)
        if self._table.announce(policy):
            self._enter(policy, partial(Adapter.from_files, self._layers, files))
        while self._table.has(policy) and self._table.ready(policy) is None:
            if policy in self._arrivals:
                await asyncio.shield(self._arrivals[policy])
            else:
                await self._gate.changed()  # it is there, but about to leave
        return policy

    def _enter(self, policy: PolicyId, build: _Build) -> None:
        self._builds[policy] = build
        self._arrivals[policy] = asyncio.get_running_loop().create_future()
        self._gate.notify()

    def _withdraw_older(self, newer: PolicyId) -> None:
        """Passes over what waits for a slot, unless somebody waits for just that."""
        for policy in [p for p in self._builds if p.source == newer.source and p not in self._recalls]:
            if policy != newer and self._table.withdraw(policy):
                del self._builds[policy]
                self._arrivals.pop(policy).cancel()

    def _recall(self, policy: PolicyId) -> None:
        """Begins to fetch a policy back, unless that is on its way."""
        if policy not in self._recalls:
            self._recalls[policy] = asyncio.create_task(self._fetch_back(policy))

    async def _fetch_back(self, policy: PolicyId) -> None:
        try:
            async with self._recalling:  # so many are in memory at a time
                files = await self._archive.fetch(policy)
                if self._table.readmit(policy):
                    self._enter(policy, partial(self._adapter_of, files))
                    await asyncio.wait([self._arrivals[policy]])
        except NotFound as error:
            log.info("%s", error.message)
            self._table.mark_lost(policy)
        except Exception as error:  # nobody can tell: those who still wait ask again
            log.warning("%s cannot be fetched back: %s", policy, error)
            await asyncio.sleep(_RECALL_AGAIN_S)
        finally:
            del self._recalls[policy]  # before anyone looks again
        self._gate.notify()

    def _adapter_of(self, files: PolicyFiles) -> Adapter:
        if files.get(CONFIG_FILE):
            return Adapter.from_files(self._layers, files)
        return Adapter.from_bytes(self._layers, files[TENSORS_FILE])

    async def _carry_out(self, order: Load) -> None:
        began = time.perf_counter()
        policy, arrival = order.policy, self._arrivals[order.policy]
        try:
            adapter = await asyncio.to_thread(self._builds.pop(policy))
            await self._load(order.slot, adapter)
        except Exception as error:  # whatever the bytes hold: it must not stop later policies
            log.warning("%s cannot be loaded: %s", policy, error)
            self._table.mark_failed(policy)
            self._recent.forget(policy)
            arrival.set_exception(error)
            arrival.exception()  # the feed waits for nobody; this marks the error as seen
        else:
            log.info("%s is served after %.1f ms", policy, (time.perf_counter() - began) * 1e3)
            self._table.mark_ready(policy)
            arrival.set_result(None)
        del self._arrivals[policy]
        self._gate.notify()


def _parts(policy: PolicyId) -> tuple[str, int]:
    return policy.source, policy.version
