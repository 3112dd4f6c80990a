"""How weights get into slots while sequences run: bytes become an adapter on a worker thread, and take a slot
between two steps of the engine.

It decides nothing: the order of loads and the slots come from `versions`. A policy that cannot be loaded is
logged and forgotten; the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath
from farstep_sampler.gate import Gate
from farstep_sampler.versions import Load, PolicyId, Serve, VersionTable

log = logging.getLogger(__name__)

_Build = Callable[[], Adapter]


class Swapper:
    """Brings policies from the feed and checkpoints from the store into slots.

    Args:
        load: puts an adapter into a slot; the engine's.
    """

    def __init__(
        self,
        table: VersionTable,
        gate: Gate,
        *,
        layers: LoraLayers,
        load: Callable[[int, Adapter], Awaitable[None]],
        store: CheckpointStore,
    ) -> None:
        self._table = table
        self._gate = gate
        self._layers = layers
        self._load = load
        self._store = store
        self._builds: dict[PolicyId, _Build] = {}
        self._arrivals: dict[PolicyId, asyncio.Future[None]] = {}
        self._data: dict[PolicyId, bytes] = {}  # of each run's newest, for a recall
        self._checkpoints: dict[str, PolicyId] = {}  # path -> what it was found to be
        self._bringing: dict[str, asyncio.Task[PolicyId]] = {}

    async def run(self) -> None:
        """Loads whatever is announced, in that order, for ever."""
        while True:
            for policy in self._gate.recalled.copy():
                self._recall(policy)
            order = self._table.next_load()
            if order is None:
                await self._gate.changed()
            else:
                await self._carry_out(order)

    def offer(self, policy: PolicyId, data: bytes) -> None:
        """Takes a run's policy as the feed brought it: `Adapter.to_bytes`."""
        if self._announce(policy, partial(Adapter.from_bytes, self._layers, data)):
            self._data[policy] = data

    async def bring(self, path: str) -> Serve:
        """A checkpoint of the store, loaded if it is not resident. Pin it before anything else is awaited.

        Raises:
            NotFound: no such checkpoint.
            InvalidInput: it is damaged, or of another base model.
        """
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

    async def _bring(self, path: str) -> PolicyId:
        manifest, files = await asyncio.to_thread(self._store.read, CheckpointPath.parse(path, field="model_path"))
        base_model, ours = manifest.meta.get("base_model"), self._layers.base.name
        if base_model is not None and base_model != ours:
            raise InvalidInput(
                f"{path} is of base model {base_model!r}; this sampler serves {ours!r}", field="model_path"
            )
        version = manifest.meta.get("policy_version")
        policy = PolicyId(path, version if isinstance(version, int) else 0)
        self._announce(policy, partial(Adapter.from_files, self._layers, files))
        if self._table.ready(policy) is None:
            await asyncio.shield(self._arrivals[policy])
        return policy

    def _announce(self, policy: PolicyId, build: _Build) -> bool:
        is_new = self._table.announce(policy)
        if is_new:
            self._builds[policy] = build
            self._arrivals[policy] = asyncio.get_running_loop().create_future()
            self._gate.notify()
        return is_new

    def _recall(self, policy: PolicyId) -> None:
        self._gate.recalled.discard(policy)
        if policy in self._data:  # else a newer one has come meanwhile
            self.offer(policy, self._data[policy])

    def _forget_older(self, newest: PolicyId) -> None:
        """Drops the bytes of versions that nobody can recall any more."""
        for policy in [p for p in self._data if p.source == newest.source and p.version < newest.version]:
            del self._data[policy]

    async def _carry_out(self, order: Load) -> None:
        began = time.perf_counter()
        policy, arrival = order.policy, self._arrivals.pop(order.policy)
        try:
            adapter = await asyncio.to_thread(self._builds.pop(policy))
            await self._load(order.slot, adapter)
        except Exception as error:  # whatever the bytes hold: it must not stop later policies
            log.warning("%s cannot be loaded: %s", policy, error)
            self._table.mark_failed(policy)
            self._data.pop(policy, None)
            arrival.set_exception(error)
            arrival.exception()  # the feed waits for nobody; this marks the error as seen
        else:
            log.info("%s is served after %.1f ms", policy, (time.perf_counter() - began) * 1e3)
            self._table.mark_ready(policy)
            self._forget_older(policy)
            arrival.set_result(None)
        self._gate.notify()
