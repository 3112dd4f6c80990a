"""`farstep projects`: who shares a control plane, and how much of it each may have."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from farstep.cli import command
from farstep.cli.output import Column, ago, moment, print_details, print_json, print_lines, print_table
from farstep.control import ControlClient
from farstep.records import ProjectInfo, Quotas

_LIMITS = tuple(limit.name for limit in fields(Quotas))
_MEANING = {
    "max_sessions": "open sessions",
    "max_runs": "runs that are not deleted",
    "max_samplers": "fresh samplers",
    "max_trainer_replicas": "trainer processes of one run",
    "max_sampler_replicas": "sampler processes of one sampler",
}
_COLUMNS = (
    Column[ProjectInfo]("project", lambda project: project.project),
    Column[ProjectInfo]("made", lambda project: ago(project.created_at), drop=1),
    Column[ProjectInfo]("quotas", lambda project: _quotas(project.quotas), drop=2),
)


def main(argv: list[str]) -> int:
    return command.run("projects", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Projects: each sees its own sessions, runs, samplers and checkpoints alone."
    commands = command.Subcommands(parser)
    making = commands.add("create", _create, "make a project, without limits where none are given")
    making.add_argument("project", metavar="NAME")
    _add_quotas(making)
    command.add_list_options(commands.add("list", _list, "list projects"))
    commands.add("show", _show, "show one project and its quotas").add_argument("project", metavar="PROJECT")
    changing = commands.add("set-quota", _set_quota, "change what a project may have at once; the rest stays")
    changing.add_argument("project", metavar="PROJECT")
    _add_quotas(changing)
    deleting = commands.add("delete", _delete, "remove projects that have nothing left")
    deleting.add_argument("project", metavar="PROJECT", nargs="+")
    command.add_yes(deleting)


def _add_quotas(parser: argparse.ArgumentParser) -> None:
    for name in _LIMITS:
        option, default = "--" + name.replace("_", "-"), argparse.SUPPRESS
        parser.add_argument(option, type=_quota, metavar="N|none", default=default, help=_MEANING[name])


def _create(client: ControlClient, arguments: argparse.Namespace) -> None:
    _tell(client.create_project(arguments.project, Quotas(**_given(arguments))), arguments)


def _list(client: ControlClient, arguments: argparse.Namespace) -> None:
    found = command.newest(client.list_projects(), arguments)
    if arguments.quiet:
        print_lines([project.project for project in found])
    elif arguments.json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, nothing="no projects")


def _show(client: ControlClient, arguments: argparse.Namespace) -> None:
    _tell(client.get_project(arguments.project), arguments)


def _set_quota(client: ControlClient, arguments: argparse.Namespace) -> None:
    given = _given(arguments)
    if not given:
        raise command.Refused("nothing to change: give one of --max-…")
    before = client.get_project(arguments.project)
    _tell(client.set_quotas(arguments.project, replace(before.quotas, **given)), arguments)


def _delete(client: ControlClient, arguments: argparse.Namespace) -> None:
    command.confirm(f"delete {command.named('project', arguments.project)}", arguments)
    for project in arguments.project:
        client.delete_project(project)
    if arguments.json:
        print_json({"deleted": arguments.project})


def _tell(project: ProjectInfo, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(project)
        return
    limits = {name: getattr(project.quotas, name) for name in _LIMITS}
    facts = {_MEANING[name]: "no limit" if limit is None else f"{limit:,} at most" for name, limit in limits.items()}
    print_details({"project": project.project, "made": moment(project.created_at), **facts})


def _given(arguments: argparse.Namespace) -> dict[str, int | None]:
    return {name: getattr(arguments, name) for name in _LIMITS if hasattr(arguments, name)}


def _quotas(quotas: Quotas) -> str:
    limits = {name.removeprefix("max_").replace("_", " "): getattr(quotas, name) for name in _LIMITS}
    return ", ".join(f"{name} {limit:,}" for name, limit in limits.items() if limit is not None) or "no limit"


def _quota(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdecimal() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor none")
    return int(text)
