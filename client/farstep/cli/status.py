"""`farstep status`: what a control plane runs, as tables or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf import json_format
from google.protobuf.message import Message

from farstep._loop import run
from farstep.cli import command
from farstep.cli.output import Column, ago, print_json, print_table, visible
from farstep.control import ControlClient
from farstep_proto.v1 import control_pb2 as pb

_MAX_RUNS = 20
_FOR_TINKER = """
For programs of the Tinker SDK: eval "$(farstep tinker-env)"
sets TINKER_BASE_URL and TINKER_API_KEY.
"""
_PROCESSES = (
    Column[pb.ProcessStatus]("process", lambda process: process.name or process.role),
    Column[pb.ProcessStatus]("state", lambda process: process.state),
    Column[pb.ProcessStatus]("started", lambda process: _age(process.started_at), drop=2),
    Column[pb.ProcessStatus]("address", lambda process: process.url, drop=1),
    Column[pb.ProcessStatus]("base model", lambda process: process.base_model, drop=3),
    Column[pb.ProcessStatus]("restarts", lambda process: str(process.num_restarts or ""), drop=4, justify="right"),
    Column[pb.ProcessStatus]("pid", lambda process: str(process.pid), drop=5, justify="right"),
    Column[pb.ProcessStatus]("log", lambda process: process.log_path, drop=6),
)
_RUNS = (
    Column[pb.ProvisionedRun]("run", lambda run: run.run_id),
    Column[pb.ProvisionedRun]("state", lambda run: run.state),
    Column[pb.ProvisionedRun]("name", lambda run: run.name, drop=3),
    Column[pb.ProvisionedRun]("made", lambda run: _age(run.created_at), drop=1),
    Column[pb.ProvisionedRun]("base model", lambda run: run.base_model, drop=2),
    Column[pb.ProvisionedRun]("session", lambda run: run.session_id, drop=5),
    Column[pb.ProvisionedRun]("message", lambda run: run.message, drop=4),
)


def main(argv: list[str]) -> int:
    """The exit code: 0 when a control plane answered, 1 when none did."""
    return command.run("status", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows processes, sessions and runs of the control plane at $FARSTEP_BASE_URL, or of the one "
        "that `farstep up` started on this machine."
    )
    command.add_connection(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(do=_status)


def _status(client: ControlClient, arguments: argparse.Namespace) -> None:
    status, runs = run(client._requests.status()), run(client._requests.run_messages())
    if arguments.json:
        print_json({"status": _as_json(status), "runs": [_as_json(run) for run in runs]})
    else:
        _print(status, runs)


def _print(status: pb.Status, runs: Sequence[pb.ProvisionedRun]) -> None:
    told = f"Farstep {status.version} at {status.base_url}: {status.num_sessions} open sessions, {len(runs)} runs"
    sys.stdout.write(visible(told) + "\n\n")
    sys.stdout.flush()
    print_table(status.processes, _PROCESSES, nothing="no processes")
    sys.stdout.write(_FOR_TINKER)
    sys.stdout.flush()
    if not runs:
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    print_table(runs[-_MAX_RUNS:], _RUNS, nothing="")
    if len(runs) > _MAX_RUNS:
        sys.stdout.write(f"and {len(runs) - _MAX_RUNS} earlier ones: `farstep runs list` has all\n")


def _age(moment: float) -> str:
    return ago(datetime.fromtimestamp(moment, UTC)) if moment else ""


def _as_json(message: Message) -> object:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
