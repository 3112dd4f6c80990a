"""`farstep check`: whether a run could begin, without a GPU, and without a server. Exit code 1: it could not."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from farstep.cli import command
from farstep.cli.output import Column, print_json, print_lines, print_table, visible
from farstep.cli.program import Program, add_program
from farstep.cli.registered import known_names
from farstep.cli.server import look
from farstep.errors import FarstepError, MissingExtraError


def main(argv: list[str]) -> int:
    epilog = known_names(argv) if {"-h", "--help"} & set(argv) else ""
    return command.run_here("check", add_arguments, argv, _check, epilog=epilog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Looks at everything that a run needs before anything is paid for: the configuration, packages, the reward "
        "function and the agent, every row of every data set, and whether a server answers. It needs no GPU and starts "
        "nothing."
    )
    add_program(parser)
    parser.add_argument("--resolved", action="store_true", help="print the configuration with every default, and end")
    parser.add_argument("--no-tokens", action="store_true", help="leave out making tokens of the rows")
    parser.add_argument(
        "--examples",
        type=int,
        default=1,
        metavar="N",
        help="show N rows as the model will see them, what is learnt between ⟦ and ⟧ (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    command.add_connection(parser)


def _check(arguments: argparse.Namespace) -> int:
    from farstep.trainers.preflight import Finding, preflight

    program = Program.of(arguments)
    try:
        trainer = program.trainer()
    except MissingExtraError as error:
        findings = [Finding("packages", "missing", str(error))]
    except FarstepError as error:
        findings = [Finding("configuration", "wrong", str(error))]
    else:
        if arguments.resolved:
            print(trainer.config.resolved(), end="")  # noqa: T201
            return 0
        findings = list(
            preflight(trainer, with_tokens=not arguments.no_tokens, num_examples=max(0, arguments.examples))
        )
    server = look()
    findings.append(Finding("server", "ok" if server.answers else "skipped", server.told))
    if arguments.json:
        print_json([asdict(finding) for finding in findings])
    else:
        columns = (
            Column[Finding]("what", lambda finding: finding.what),
            Column[Finding]("", lambda finding: finding.verdict),
            Column[Finding]("", lambda finding: finding.detail),
        )
        print_table([finding for finding in findings if finding.what != "example"], columns, nothing="")
        for finding in findings:
            if finding.what == "example":
                print_lines(["", *(visible(line) for line in finding.detail.split("\n"))])
    return int(any(finding.is_bad for finding in findings))
