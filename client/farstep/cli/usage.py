"""`farstep usage`: tokens trained and sampled, and the seconds of devices that this took."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from farstep.cli import command
from farstep.cli.output import Column, duration, number, print_json, print_table
from farstep.control import ControlClient
from farstep.records import Usage

_NUMBERS = (
    Column[Usage]("trained", lambda usage: number(usage.tokens_trained), justify="right"),
    Column[Usage]("sampled", lambda usage: number(usage.tokens_sampled), justify="right"),
    Column[Usage]("trainer", lambda usage: duration(usage.trainer_seconds), drop=1, justify="right"),
    Column[Usage]("sampler", lambda usage: duration(usage.sampler_seconds), drop=2, justify="right"),
    Column[Usage]("prompted", lambda usage: number(usage.tokens_prompted), drop=3, justify="right"),
    Column[Usage]("forward", lambda usage: number(usage.tokens_forward), drop=4, justify="right"),
    Column[Usage]("samples", lambda usage: number(usage.num_samples), drop=5, justify="right"),
    Column[Usage]("operations", lambda usage: number(usage.num_operations), drop=6, justify="right"),
)
_COLUMNS = {
    "run": (
        Column[Usage]("run", lambda usage: usage.run_id or "no run"),
        Column[Usage]("project", lambda usage: usage.project, drop=7),
        *_NUMBERS,
    ),
    "project": (Column[Usage]("project", lambda usage: usage.project), *_NUMBERS),
}


def main(argv: list[str]) -> int:
    return command.run("usage", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What was used: tokens trained, sampled, prompted and passed forward, and for how long the devices of trainers "
        "and samplers were busy with it. Servers are asked every few seconds."
    )
    command.add_connection(parser)
    parser.add_argument("--by", choices=["run", "project"], default="run", help="what is summed (default: %(default)s)")
    parser.add_argument(
        "--since", type=command.day, metavar="DAY", help="such as 7d or 2026-01-31, in UTC (default: the beginning)"
    )
    parser.add_argument("--until", type=command.day, metavar="DAY", help="that day included (default: today)")
    parser.add_argument("--project", metavar="PROJECT", help="of this project alone")
    parser.add_argument("--run", metavar="RUN", help="of this run alone")
    parser.add_argument(
        "--limit",
        type=command.positive,
        metavar="N",
        help="those N alone that kept devices busy longest (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(do=_usage)


def _usage(client: ControlClient, arguments: argparse.Namespace) -> None:
    found = client.get_usage(
        by=arguments.by,
        since=arguments.since,
        until=arguments.until,
        project=arguments.project,
        run_id=arguments.run,
    )
    shown = sorted(found, key=_seconds, reverse=True)[: arguments.limit]
    if arguments.json:
        print_json(shown)
        return
    rows = [*shown, _total(found, arguments.by)] if len(found) > 1 else shown
    print_table(rows, _COLUMNS[arguments.by], nothing="nothing was used")


def _seconds(usage: Usage) -> float:
    return usage.trainer_seconds + usage.sampler_seconds


def _total(found: Sequence[Usage], by: str) -> Usage:
    counted = [name for name, value in asdict(found[0]).items() if not isinstance(value, str)]
    sums = {name: sum(getattr(usage, name) for usage in found) for name in counted}
    is_run = by == "run"
    return Usage(project="" if is_run else "total", run_id="total" if is_run else "", **sums)
