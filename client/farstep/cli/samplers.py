"""`farstep samplers`: fresh samplers, those that somebody had started for himself alone."""

from __future__ import annotations

import argparse

from farstep.cli import command
from farstep.cli.output import Column, ago, moment, print_details, print_json, print_lines, print_table
from farstep.control import ControlClient
from farstep.records import SamplerInfo

_COLUMNS = (
    Column[SamplerInfo]("sampler", lambda sampler: sampler.sampler_id),
    Column[SamplerInfo]("state", lambda sampler: sampler.state),
    Column[SamplerInfo]("made", lambda sampler: ago(sampler.created_at), drop=1),
    Column[SamplerInfo]("serves", lambda sampler: sampler.model_path or sampler.base_model, drop=2),
    Column[SamplerInfo]("project", lambda sampler: sampler.project, drop=4),
    Column[SamplerInfo]("address", lambda sampler: sampler.sampler_url, drop=3),
    Column[SamplerInfo]("session", lambda sampler: sampler.session_id, drop=6),
    Column[SamplerInfo]("message", lambda sampler: sampler.message, drop=5),
)


def main(argv: list[str]) -> int:
    return command.run("samplers", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Fresh samplers. Those that are paired with a trainer are in `farstep status`."
    commands = command.Subcommands(parser)
    command.add_list_options(commands.add("list", _list, "list fresh samplers"))
    commands.add("show", _show, "show one sampler").add_argument("sampler_id", metavar="SAMPLER")
    stopping = commands.add("stop", _stop, "stop samplers, whoever uses them")
    stopping.add_argument("sampler_id", metavar="SAMPLER", nargs="+")
    command.add_yes(stopping)


def _list(client: ControlClient, arguments: argparse.Namespace) -> None:
    found = command.newest(client.list_samplers(), arguments)
    if arguments.quiet:
        print_lines([sampler.sampler_id for sampler in found])
    elif arguments.json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, nothing="no samplers")


def _show(client: ControlClient, arguments: argparse.Namespace) -> None:
    sampler = client.get_sampler(arguments.sampler_id)
    if arguments.json:
        print_json(sampler)
        return
    facts = {
        "sampler": sampler.sampler_id,
        "state": sampler.state,
        "message": sampler.message,
        "base model": sampler.base_model,
        "checkpoint": sampler.model_path,
        "address": sampler.sampler_url,
        "project": sampler.project,
        "session": sampler.session_id,
        "made": moment(sampler.created_at),
    }
    print_details({name: value for name, value in facts.items() if value})


def _stop(client: ControlClient, arguments: argparse.Namespace) -> None:
    command.confirm(f"stop {command.named('sampler', arguments.sampler_id)}", arguments)
    for sampler_id in arguments.sampler_id:
        client.stop_sampler(sampler_id)
    if arguments.json:
        print_json({"stopped": arguments.sampler_id})
