"""What a trainer is told: flags and environment, read and checked once."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farstep_model.embedded import MODEL_NAME
from farstep_serving.keys import KeyRing
from farstep_serving.remote_keys import ControlAddress
from farstep_worker.compute import ComputeSettings
from farstep_worker.journal.journal import DEFAULT_MAX_BYTES
from farstep_worker.publisher import DEFAULT_KEEP
from farstep_worker.registry import DEFAULT_MAX_RUNS
from farstep_worker.server import DEFAULT_MAX_DATUM_BYTES, DEFAULT_MAX_REQUEST_BYTES
from farstep_worker.snapshots import SnapshotLimits
from farstep_worker.telemetry import SpanWriter


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
    max_datum_bytes: int
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
        max_datum_bytes=flags.max_datum_bytes,
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
        "--max-datum-bytes",
        type=_positive,
        default=DEFAULT_MAX_DATUM_BYTES,
        help="of a request that is larger because one datum, or pair, is",
    )
    parser.add_argument(
        "--custom-losses", action="store_true", help="compute losses that clients send in as graphs of operations"
    )
    _add_run_flags(parser)
    _add_journal_flags(parser)
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
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


def _add_journal_flags(parser: argparse.ArgumentParser) -> None:
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


def scratch(store: str) -> Path:
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
    return scratch(flags.store) / "journal~" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


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
