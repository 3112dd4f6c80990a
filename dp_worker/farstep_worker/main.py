"""The trainer's life: flags and environment once, a base model, servers, and an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.blobs import open_blobs
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_infra.store.policies import PolicyShelves
from farstep_model.embedded import MODEL_NAME
from farstep_proto.errors import ApiError
from farstep_serving.keys import KeyRing, Keys
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of
from farstep_serving.remote_keys import ControlAddress, all_keys
from farstep_worker.compute import ComputeSettings, prepare
from farstep_worker.dispatch import Dispatcher
from farstep_worker.evicted import EvictedRuns, remove_stale
from farstep_worker.executor import Executor
from farstep_worker.feed import FeedServer, PolicyFeed
from farstep_worker.journal.folder import JournalFolder, locked
from farstep_worker.journal.journal import DEFAULT_MAX_BYTES, Journal, open_journal
from farstep_worker.lead import Ending, GroupSettings, leading
from farstep_worker.memory import settle_memory, total_bytes
from farstep_worker.publisher import DEFAULT_KEEP, Publisher, WeightSync
from farstep_worker.ranks import device_of
from farstep_worker.registry import DEFAULT_MAX_RUNS
from farstep_worker.server import DEFAULT_MAX_REQUEST_BYTES, TrainerApi, make_server
from farstep_worker.snapshots import SnapshotLimits
from farstep_worker.telemetry import SpanWriter

log = logging.getLogger(__name__)

FLUSH_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything that a worker is told; made once. `run_memory_bytes` None is by the device, `journal` None is off.

    `num_threads` are those of each of its `nproc` processes.
    """

    model: str
    store: str
    host: str
    port: int
    feed_port: int
    device: str
    nproc: int
    compute: ComputeSettings
    max_request_bytes: int
    custom_losses: bool
    max_runs: int
    run_memory_bytes: int | None
    fuse_runs: bool
    keep_policies: int
    weight_sync_uri: str
    num_threads: int
    journal: Path | None
    journal_bytes: int
    snapshots: SnapshotLimits
    spans: SpanWriter | None
    ends_with_parent: bool
    log_level: str
    keys: KeyRing  # its own
    control: ControlAddress | None  # who knows of others


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


def read_config(argv: Sequence[str] | None = None) -> WorkerConfig:
    """Flags and environment, checked.

    Raises:
        SystemExit: a flag or a variable that makes no sense, or an open server on an address that others reach.
    """
    flags = _parser().parse_args(argv)
    keys = KeyRing.of(os.environ.get("FARSTEP_API_KEY"))
    keys.check_host(flags.host)
    return WorkerConfig(
        model=flags.model,
        store=flags.store,
        host=flags.host,
        port=flags.port,
        feed_port=flags.feed_port,
        device=flags.device,
        nproc=flags.nproc,
        compute=ComputeSettings.of(flags),
        max_request_bytes=flags.max_request_bytes,
        custom_losses=flags.custom_losses,
        max_runs=flags.max_runs,
        run_memory_bytes=flags.run_memory_mib and flags.run_memory_mib << 20,
        fuse_runs=flags.fuse_runs == "auto",
        keep_policies=flags.keep_policies,
        weight_sync_uri=flags.weight_sync_uri,
        num_threads=max(1, _num_threads(os.environ.get("OMP_NUM_THREADS")) // flags.nproc),
        journal=_journal(flags),
        journal_bytes=flags.journal_mib << 20,
        snapshots=_snapshots(flags),
        spans=_spans(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")),
        ends_with_parent=flags.exit_with_parent,
        log_level=flags.log_level,
        keys=keys,
        control=ControlAddress.of(os.environ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m farstep_worker", description="Trains LoRA adapters on one model.")
    parser.add_argument("--model", default=MODEL_NAME, help="embedded model, local directory, or hub id")
    parser.add_argument(
        "--store", required=True, metavar="PLACE", help="of checkpoints: directory or s3://bucket/prefix"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=0, help="0 takes a free one")
    parser.add_argument("--feed-port", type=_port, default=0, help="of the policy feed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument("--nproc", type=_positive, default=1, help="processes that train together, a GPU each")
    ComputeSettings.add_flags(parser)
    parser.add_argument("--max-request-bytes", type=_positive, default=DEFAULT_MAX_REQUEST_BYTES)
    parser.add_argument(
        "--custom-losses", action="store_true", help="compute losses that clients send in as graphs of operations"
    )
    parser.add_argument("--max-runs", type=_positive, default=DEFAULT_MAX_RUNS, help="more are refused")
    parser.add_argument(
        "--run-memory-mib",
        type=_positive,
        help="for adapters, gradients and moments of all runs; idle ones beyond that go to the disk until they "
        "are used (default: a quarter of the device's memory)",
    )
    parser.add_argument(
        "--fuse-runs",
        choices=["auto", "off"],
        default="auto",
        help="small passes of several runs in one batch, where the numbers stay the same to the bit",
    )
    parser.add_argument(
        "--keep-policies",
        type=_positive,
        default=DEFAULT_KEEP,
        help="published policies kept of each run, unnamed ones",
    )
    parser.add_argument(
        "--weight-sync-uri", default="", metavar="URI", help="file:///dir or s3://bucket/prefix that samplers poll"
    )
    parser.add_argument(
        "--journal",
        metavar="DIR",
        help="where operations are written down before they are acknowledged, so that a killed trainer goes on where "
        "it was when it is started with the same flags; off: nowhere (default: in the store's directory, or in the "
        "user's cache where the store is a bucket)",
    )
    parser.add_argument(
        "--journal-mib",
        type=_positive,
        default=DEFAULT_MAX_BYTES >> 20,
        help="of operations and outcomes in it; two snapshots of each run come on top",
    )
    parser.add_argument(
        "--snapshot-operations",
        type=_positive,
        default=os.environ.get("FARSTEP_SNAPSHOT_OPERATIONS"),
        metavar="N",
        help="a snapshot of a run after every N operations, whatever it costs: the fewer, the sooner a killed trainer "
        "is back (default: $FARSTEP_SNAPSHOT_OPERATIONS, or as its cost and that of a replay say)",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser


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
    scratch = _scratch(config.store)
    remove_stale(scratch)
    with closing(EvictedRuns(scratch)) as evicted:
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


def _scratch(store: str) -> Path:
    """A directory of this machine: the store's where it is one, else the user's cache."""
    if "://" not in store:
        return Path(store)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farstep"


def _snapshots(flags: argparse.Namespace) -> SnapshotLimits:
    if flags.snapshot_operations is None:
        return SnapshotLimits()
    return SnapshotLimits(operations=flags.snapshot_operations, worth=0.0)


def _journal(flags: argparse.Namespace) -> Path | None:
    """By default one of this model, type and number of processes: what a trainer with the same flags takes up."""
    if flags.journal is not None:
        return None if flags.journal == "off" else Path(flags.journal)
    about = json.dumps([flags.store if "://" in flags.store else "", flags.model, flags.dtype, flags.nproc])
    name = re.sub(r"[^\w.-]+", "-", flags.model).strip("-.")[-40:]
    return _scratch(flags.store) / "journal~" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def _spans(endpoint: str | None) -> SpanWriter | None:
    """Raises SystemExit where spans are asked for and their extra is missing."""
    if not endpoint:
        return None
    try:
        from farstep_worker.spans import OtelSpans
    except ImportError as error:
        raise SystemExit(f"OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'farstep[otel]' ({error})") from error
    return OtelSpans()


def _num_threads(text: str | None) -> int:
    """OMP_NUM_THREADS where it is set, as whoever shares a host among processes does; else every core."""
    if text is None:
        return os.cpu_count() or 1
    try:
        return _positive(text)
    except ValueError as error:
        raise SystemExit(f"OMP_NUM_THREADS={text!r} is not a positive number") from error


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65_536:
        raise ValueError(text)
    return value
