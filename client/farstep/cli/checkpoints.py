"""`farstep checkpoints`: what is kept, as a table or as JSON; removed, kept for a while, exported, imported.

It is a user of `ServiceClient`, and looks for the control plane where that does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from farstep import ServiceClient
from farstep._checkpoint_requests import checked_path
from farstep.checkpoints import Checkpoint
from farstep.errors import FarstepError
from farstep_proto.errors import ApiError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def main(argv: list[str]) -> int:
    """The exit code: 0 when it was done, 1 when not, with the reason on standard error."""
    arguments = _parse(argv)
    if arguments.home is not None:
        os.environ["FARSTEP_HOME"] = str(arguments.home.expanduser())
    do: Callable[[ServiceClient, argparse.Namespace], None] = arguments.do
    try:
        with ServiceClient() as service:
            do(service, arguments)
    except (FarstepError, ApiError) as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def _list(service: ServiceClient, arguments: argparse.Namespace) -> None:
    run_ids = [arguments.run_id] if arguments.run_id else [run.run_id for run in service.list_runs()]
    _show([found for run_id in run_ids for found in service.list_checkpoints(run_id)], as_json=arguments.json)


def _get(service: ServiceClient, arguments: argparse.Namespace) -> None:
    found = service.get_checkpoint(arguments.checkpoint)
    if arguments.json:
        _print_json(_as_json(found))
        return
    table = Table(show_header=False)
    for name, value in _as_json(found).items():
        table.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
    Console().print(table)


def _delete(service: ServiceClient, arguments: argparse.Namespace) -> None:
    for checkpoint in arguments.checkpoint:
        service.delete_checkpoint(checkpoint)
    if arguments.json:
        _print_json({"deleted": [str(checked_path(checkpoint)) for checkpoint in arguments.checkpoint]})


def _ttl(service: ServiceClient, arguments: argparse.Namespace) -> None:
    ttl_seconds = None if arguments.seconds == "never" else int(arguments.seconds)
    _show([service.set_checkpoint_ttl(arguments.checkpoint, ttl_seconds)], as_json=arguments.json)


def _export(service: ServiceClient, arguments: argparse.Namespace) -> None:
    folder = service.export_checkpoint(
        arguments.checkpoint,
        arguments.format,
        arguments.out,
        base_model=arguments.base_model,
        dtype=arguments.dtype,
    )
    _print_json({"folder": str(folder)}) if arguments.json else sys.stdout.write(f"{folder}\n")


def _import(service: ServiceClient, arguments: argparse.Namespace) -> None:
    imported = service.import_adapter(arguments.adapter, arguments.name, base_model=arguments.base_model)
    if arguments.json:
        _print_json(asdict(imported))
    else:
        sys.stdout.write(f"{imported.path}\n{imported.sampler_path}\n")


def _show(found: Sequence[Checkpoint], *, as_json: bool) -> None:
    if as_json:
        _print_json([_as_json(checkpoint) for checkpoint in found])
        return
    table = Table("path", "made", "step", "version", "size", "base model", "expires")
    for checkpoint in found:
        table.add_row(
            escape(checkpoint.path),
            _moment(checkpoint.created_at),
            _number(checkpoint.step),
            _number(checkpoint.policy_version),
            _size(checkpoint.size_bytes),
            escape(checkpoint.base_model),
            _moment(checkpoint.expires_at),
        )
    Console().print(table)


def _as_json(checkpoint: Checkpoint) -> dict[str, object]:
    content: dict[str, object] = {**asdict(checkpoint)}
    for name in ("created_at", "expires_at"):
        moment = getattr(checkpoint, name)
        content[name] = None if moment is None else moment.isoformat()
    return content


def _print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _size(num_bytes: float) -> str:
    unit = 0
    while num_bytes >= 1024 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.0f} {_UNITS[unit]}" if unit == 0 else f"{num_bytes:.1f} {_UNITS[unit]}"


def _seconds(text: str) -> str:
    if text != "never" and not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number of seconds nor 'never'")
    return text


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="farstep checkpoints",
        description="Checkpoints of the control plane at $FARSTEP_BASE_URL, or of the one that `farstep up` started "
        "on this machine. A checkpoint is given by its path (bt://…) or id.",
    )
    parser.add_argument("--home", type=Path, help="where `farstep up` keeps its state (default: ~/.farstep)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, do: Callable[[ServiceClient, argparse.Namespace], None], summary: str) -> _Parser:
        added: _Parser = commands.add_parser(name, help=summary, description=summary)
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(do=do)
        return added

    listing = command("list", _list, "show what is kept of a run, or of all runs")
    listing.add_argument("run_id", nargs="?", metavar="RUN")
    command("get", _get, "show one checkpoint").add_argument("checkpoint", metavar="CHECKPOINT")
    command("delete", _delete, "remove checkpoints").add_argument("checkpoint", metavar="CHECKPOINT", nargs="+")
    ttl = command("ttl", _ttl, "say when a checkpoint expires")
    ttl.add_argument("checkpoint", metavar="CHECKPOINT")
    ttl.add_argument("seconds", type=_seconds, metavar="SECONDS", help="from now on; or never")
    _add_export(command("export", _export, "write a checkpoint to a folder of this machine"))
    bringing = command("import", _import, "make a checkpoint of a PEFT adapter")
    bringing.add_argument("adapter", metavar="FOLDER_OR_HUB_ID")
    bringing.add_argument("--name", default="imported", help="(default: %(default)s)")
    bringing.add_argument("--base-model", help="as the server knows it (default: as the adapter names it)")
    return parser.parse_args(argv)


_Parser = argparse.ArgumentParser


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--format", default="peft", choices=["peft", "merged"], help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a folder that is not there yet (default: the checkpoint's name)")
    parser.add_argument("--base-model", help="for merged: where the base model is on this machine")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of a merged model")
