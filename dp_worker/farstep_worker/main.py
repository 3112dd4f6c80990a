"""The trainer's life: a base model, servers, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.blobs import open_blobs
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_infra.store.policies import PolicyShelves
from farstep_proto.errors import ApiError
from farstep_serving.keys import Keys
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of
from farstep_serving.remote_keys import all_keys
from farstep_worker.compute import prepare
from farstep_worker.config import WorkerConfig, read_config, scratch
from farstep_worker.dispatch import Dispatcher
from farstep_worker.evicted import EvictedRuns, remove_stale
from farstep_worker.executor import Executor
from farstep_worker.feed import FeedServer, PolicyFeed
from farstep_worker.journal.folder import JournalFolder, locked
from farstep_worker.journal.journal import Journal, open_journal
from farstep_worker.lead import Ending, GroupSettings, leading
from farstep_worker.memory import settle_memory, total_bytes
from farstep_worker.publisher import Publisher, WeightSync
from farstep_worker.ranks import device_of
from farstep_worker.server import TrainerApi, make_server

log = logging.getLogger(__name__)

FLUSH_S = 5.0


def main(argv: Sequence[str] | None = None) -> None:
    config = read_config(argv)
    setup_logging(config.log_level)
    settle_memory()
    if config.ends_with_parent:
        exit_with_parent()
    sock = bind(config.host, config.port)
    try:
        with locked_journal(config) as folder, open_executor(config) as executor:
            asyncio.run(run_worker(config, executor, sock, folder))
    except ApiError as error:
        raise SystemExit(f"{error.message} ({error.hint})" if error.hint else error.message) from error
    except KeyboardInterrupt:
        log.info("stopped by Ctrl-C")


@contextmanager
def locked_journal(config: WorkerConfig) -> Iterator[JournalFolder | None]:
    """The journal's folder, where there is to be one; before anything else, which may take long.

    Raises:
        Conflict: another trainer has it.
        Internal: it cannot be made.
    """
    if config.journal is None:
        yield None
        return
    with locked(config.journal) as folder:
        yield folder


def begin_journal(config: WorkerConfig, folder: JournalFolder, executor: Executor) -> Journal:
    """Raises Conflict for a journal of another model, Internal for one that cannot be read or begun."""
    base = executor.base
    identity = {"model": base.name, "dtype": str(base.dtype).removeprefix("torch.")}
    settings = {
        "processes": str(config.nproc),
        "threads": str(config.num_threads),
        "device": base.device.type,
        "token-budget": str(config.compute.token_budget or "auto"),
        "batching": config.compute.batching,
    }
    return open_journal(folder, identity, settings, max_bytes=config.journal_bytes)


@contextmanager
def open_executor(config: WorkerConfig) -> Iterator[Executor]:
    """The base model, loaded by as many processes as are asked for.

    Raises:
        NotFound, InvalidInput: it cannot be loaded, naming what is wrong.
    """
    folder = scratch(config.store)
    remove_stale(folder)
    with closing(EvictedRuns(folder)) as evicted:
        if config.nproc == 1:
            yield make_executor(config, evicted)
            return
        with leading_executor(config, evicted) as executor:
            yield executor


@contextmanager
def leading_executor(config: WorkerConfig, evicted: EvictedRuns) -> Iterator[Executor]:
    """One that computes in several processes; raises as `open_executor`."""
    device = device_of(0, world=config.nproc, device=config.device)
    settings = GroupSettings(
        world=config.nproc,
        model=config.model,
        store=config.store,
        device=config.device,
        compute=config.compute,
        num_threads=config.num_threads,
        log_level=config.log_level,
        run_memory_bytes=config.run_memory_bytes or _run_memory_bytes(device),
        publisher=lambda store: make_publisher(config, store),
    )
    ending = Ending()
    with leading(settings, evicted, on_loss=ending.lose) as executor, ending.on_sigterm():
        yield executor


def make_executor(config: WorkerConfig, evicted: EvictedRuns) -> Executor:
    """One that computes in this process alone; raises as `open_executor`."""
    ready = prepare(config.model, config.compute, device=config.device, num_threads=config.num_threads)
    log.info("computing with %d threads", config.num_threads)
    store = open_store(config.store)
    return Executor(
        ready.layers,
        store,
        token_budget=ready.token_budget,
        layout=ready.layout,
        evicted=evicted,
        run_memory_bytes=config.run_memory_bytes or _run_memory_bytes(ready.layers.base.device),
        fuse_runs=config.fuse_runs,
        publisher=make_publisher(config, store),
    )


def make_publisher(config: WorkerConfig, store: CheckpointStore) -> Publisher:
    """Raises InvalidInput for a weight-sync URI that is none."""
    sync = None
    if config.weight_sync_uri:
        blobs = open_blobs(config.weight_sync_uri, field="--weight-sync-uri")
        sync = WeightSync(config.weight_sync_uri, PolicyShelves(blobs, keep=config.keep_policies))
    return Publisher(store, keep=config.keep_policies, sync=sync)


async def run_worker(
    config: WorkerConfig, executor: Executor, sock: socket.socket, folder: JournalFolder | None = None
) -> None:
    """Serves until a signal; then lets the running operation finish within the time there is."""
    async with all_keys(config.keys, config.control) as keys:
        await _run_with_keys(config, executor, sock, folder, keys)


async def _run_with_keys(
    config: WorkerConfig, executor: Executor, sock: socket.socket, folder: JournalFolder | None, keys: Keys
) -> None:
    publisher = executor.publisher
    feed = PolicyFeed(keys, read=lambda run_id, version, history: publisher.read(run_id, version, history=history))
    journal = None if folder is None else begin_journal(config, folder, executor)
    dispatcher = Dispatcher(
        executor,
        feed=feed,
        num_threads=config.num_threads,
        max_runs=config.max_runs,
        spans=config.spans,
        journal=journal,
        snapshots=config.snapshots,
    )
    checkpoints = Checkpoints(executor.store, secret=config.keys.secret())
    api = TrainerApi(
        executor.base,
        dispatcher,
        checkpoints,
        max_request_bytes=config.max_request_bytes,
        max_datum_bytes=config.max_datum_bytes,
        custom_losses=config.custom_losses,
    )
    app = make_server(api, keys=keys, feed=FeedServer(feed), host=config.host, feed_port=config.feed_port)

    is_ready = False

    def on_ready() -> None:
        nonlocal is_ready
        is_ready = True
        announce(url=url_of(sock), feed=api.feed_address, pid=os.getpid())

    def on_stop() -> None:
        dispatcher.drain()

    await asyncio.to_thread(publisher.sweep)
    try:
        await serve(app, sock, on_ready=on_ready, on_stop=on_stop)
        if not is_ready:
            raise SystemExit("the trainer could not begin; the reason is above")
        if not await asyncio.to_thread(publisher.flush, FLUSH_S):
            log.warning("published policies are still on their way to %s", config.weight_sync_uri or "the store")
    finally:
        if journal is not None:
            await asyncio.to_thread(journal.close)
        if dispatcher.is_computing:  # a pass cannot be interrupted, and must not hold the process
            log.error("ending in the middle of an operation")
            sys.stderr.flush()
            os._exit(1)


def _run_memory_bytes(device: torch.device) -> int:
    return total_bytes(device) // 4
