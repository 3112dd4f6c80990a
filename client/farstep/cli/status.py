"""`farstep status`: what a control plane runs, as a table or as JSON.

It looks where `ServiceClient()` would: environment, then `local.json`, then the default address.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TypeVar

import httpx
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from farstep._settings import Settings, load_settings
from farstep.errors import FarstepError
from farstep_proto import paths
from farstep_proto.v1 import common_pb2, control_pb2

M = TypeVar("M", bound=Message)

_ANSWER_WITHIN_S = 10.0
_MAX_RUNS = 20
_COLOURS = {"running": "green", "ready": "green", "starting": "yellow", "provisioning": "yellow"}


class _Unreachable(Exception):
    """Nothing there, or it does not let us in; the message says which."""


def main(argv: list[str]) -> int:
    """The exit code: 0 when a control plane answered, 1 when none did."""
    arguments = _parse(argv)
    if arguments.home is not None:
        os.environ["FARSTEP_HOME"] = str(arguments.home.expanduser())
    try:
        settings = load_settings(api_key=None, base_url=None, reuse_from_session_id=None)
        with httpx.Client(timeout=_ANSWER_WITHIN_S, trust_env=not _is_local(settings.base_url)) as client:
            status = _get(client, settings, paths.STATUS, control_pb2.Status)
            runs = list(_get(client, settings, paths.RUNS, control_pb2.ListProvisionedRunsResponse).runs)
    except (_Unreachable, FarstepError) as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    if arguments.json:
        content = {"status": _as_json(status), "runs": [_as_json(run) for run in runs]}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        _print(Console(), status, runs)
    return 0


def _get(client: httpx.Client, settings: Settings, path: str, kind: type[M]) -> M:
    headers = {"Accept": paths.PROTOBUF}
    if settings.key.secret:
        headers["Authorization"] = f"Bearer {settings.key.secret}"
    try:
        response = client.get(settings.base_url + path, headers=headers)
    except httpx.HTTPError as error:
        raise _Unreachable(f"nothing answers at {settings.base_url}; `farstep up` starts it here") from error
    content_type = response.headers.get("content-type", "")
    if paths.PROTOBUF not in content_type:
        raise _Unreachable(f"what answers at {settings.base_url} is no Farstep control plane")
    if response.is_error:
        refusal = common_pb2.Error.FromString(response.content)
        raise _Unreachable(f"{settings.base_url}: {refusal.message}" + (f"; {refusal.hint}" if refusal.hint else ""))
    return kind.FromString(response.content)


def _print(console: Console, status: control_pb2.Status, runs: list[control_pb2.ProvisionedRun]) -> None:
    console.print(
        f"Farstep {status.version} at {status.base_url}: {status.num_sessions} open sessions, {len(runs)} runs",
        highlight=False,
    )
    processes = Table("role", "state", "base model", "address", "pid", "up for", "log")
    for process in status.processes:
        processes.add_row(
            process.role,
            _coloured(process.state),
            process.base_model,
            process.url,
            str(process.pid),
            _since(process.started_at),
            process.log_path,
        )
    console.print(processes)
    if not runs:
        return
    table = Table("run", "state", "base model", "session", "name", "age", "message")
    for run in runs[-_MAX_RUNS:]:
        message = run.message.partition("\n")[0]
        age = _since(run.created_at)
        told = (escape(text) for text in (run.base_model, run.session_id, run.name, age, message))
        table.add_row(run.run_id, _coloured(run.state), *told)
    console.print(table)
    if len(runs) > _MAX_RUNS:
        console.print(f"and {len(runs) - _MAX_RUNS} earlier ones: --json has all", highlight=False)


def _coloured(state: str) -> str:
    return f"[{_COLOURS.get(state, 'red')}]{state}[/]"


def _since(moment: float) -> str:
    seconds = max(0, int(time.time() - moment))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _as_json(message: Message) -> object:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _is_local(base_url: str) -> bool:
    return httpx.URL(base_url).host in ("127.0.0.1", "localhost", "::1")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="farstep status",
        description="Shows processes, sessions and runs of the control plane at $FARSTEP_BASE_URL, or of the one "
        "that `farstep up` started on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--home", type=Path, help="where `farstep up` keeps its state (default: ~/.farstep)")
    return parser.parse_args(argv)
