"""`farstep runs`: what is being trained, and the end of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from farstep.cli import command
from farstep.cli.output import Column, ago, moment, print_details, print_json, print_lines, print_table
from farstep.control import ControlClient
from farstep.results import LoraConfig, RunInfo

STATES = ("provisioning", "ready", "inactive", "failed", "deleted")
_COLUMNS = (
    Column[RunInfo]("run", lambda run: run.run_id),
    Column[RunInfo]("state", lambda run: run.state),
    Column[RunInfo]("name", lambda run: run.name, drop=3),
    Column[RunInfo]("made", lambda run: ago(run.created_at), drop=1),
    Column[RunInfo]("base model", lambda run: run.base_model, drop=2),
    Column[RunInfo]("rank", lambda run: str(run.lora.rank), drop=6, justify="right"),
    Column[RunInfo]("project", lambda run: run.project, drop=4),
    Column[RunInfo]("session", lambda run: run.session_id, drop=7),
    Column[RunInfo]("message", lambda run: run.message, drop=5),
)


def main(argv: list[str]) -> int:
    return command.run("runs", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs: adapters that are or were being trained."
    commands = command.Subcommands(parser)
    listing = commands.add("list", _list, "list runs, the newest last")
    listing.add_argument("--state", choices=STATES, help="those in this state alone")
    listing.add_argument("--project", metavar="PROJECT", help="those of this project alone")
    listing.add_argument("--session", metavar="SESSION", help="those of this session alone")
    command.add_list_options(listing)
    commands.add("show", _show, "show one run, and how to go on with it").add_argument("run_id", metavar="RUN")
    deactivating = commands.add("deactivate", _deactivate, "stop what only these runs use; they can be gone on with")
    deactivating.add_argument("run_id", metavar="RUN", nargs="+")
    deleting = commands.add("delete", _delete, "end runs; their checkpoints are kept")
    deleting.add_argument("run_id", metavar="RUN", nargs="+")
    command.add_yes(deleting)


def _list(client: ControlClient, arguments: argparse.Namespace) -> None:
    asked = {"state": arguments.state, "project": arguments.project, "session_id": arguments.session}
    wanted = {name: value for name, value in asked.items() if value}
    runs = [run for run in client.list_runs() if all(getattr(run, name) == wanted[name] for name in wanted)]
    found = command.newest(runs, arguments)
    if arguments.quiet:
        print_lines([run.run_id for run in found])
    elif arguments.json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, nothing="no runs")


def _show(client: ControlClient, arguments: argparse.Namespace) -> None:
    run = client.get_run(arguments.run_id)
    if arguments.json:
        print_json(run)
        return
    facts = {
        "run": run.run_id,
        "state": run.state,
        "message": run.message,
        "name": run.name,
        "base model": run.base_model,
        "adapter": _adapter(run.lora),
        "project": run.project,
        "session": run.session_id,
        "made": moment(run.created_at),
        **{f"metadata.{name}": value for name, value in run.user_metadata.items()},
        "go on": _how_to_go_on(run),
    }
    print_details({name: value for name, value in facts.items() if value})


def _deactivate(client: ControlClient, arguments: argparse.Namespace) -> None:
    changed = [client.deactivate_run(run_id) for run_id in arguments.run_id]
    if arguments.json:
        print_json(changed)
    else:
        print_table(changed, _COLUMNS[:2], nothing="no runs")


def _delete(client: ControlClient, arguments: argparse.Namespace) -> None:
    command.confirm(f"delete {command.named('run', arguments.run_id)}", arguments)
    for run_id in arguments.run_id:
        client.delete_run(run_id)
    if arguments.json:
        print_json({"deleted": arguments.run_id})


def _adapter(lora: LoraConfig) -> str:
    """What differs from the defaults."""
    default = asdict(LoraConfig(lora.rank, alpha=float(lora.rank)))
    told = [f"{name} {value}" for name, value in asdict(lora).items() if value not in (default[name], None, (), [])]
    return ", ".join([f"rank {lora.rank}", *told])


def _how_to_go_on(run: RunInfo) -> str:
    match run.state:
        case "ready" | "inactive":
            return f'farstep.ServiceClient().resume_run("{run.run_id}")'
        case "failed" | "deleted":
            return f"from one of its checkpoints: farstep checkpoints list {run.run_id}"
        case _:
            return ""
