"""`farstep report`: makes the page about a run again, of what is in its folder; of one that goes on, too."""

from __future__ import annotations

import argparse
from pathlib import Path

from farstep.cli import command
from farstep.cli.output import print_lines


def main(argv: list[str]) -> int:
    return command.run_here("report", add_arguments, argv, _report)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes the report of a run from its folder: curves, what became of samples, rewards, tokens with mask, "
        "log-probability and advantage, checkpoints, the configuration, and why it failed where it did."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the run, such as farstep-runs/NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: report.html in the folder)")


def _report(arguments: argparse.Namespace) -> int:
    from farstep.trainers.report import write_report

    try:
        path = write_report(arguments.folder, arguments.out)
    except OSError as error:
        raise command.Refused(f"{error.filename}: {error.strerror}") from error
    print_lines([str(path)])
    return 0
