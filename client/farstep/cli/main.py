"""The `farstep` command: it finds the subcommand, which does the rest.

A subcommand is a module with `main(argv) -> exit code`; only the one that is asked for is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

_COMMANDS = {
    "up": "run control plane, trainer and sampler on this machine until stopped",
    "status": "show what runs",
    "checkpoints": "list, show, remove, keep for a while, export and import checkpoints",
    "demo": "the whole way once on an embedded model: fine-tuning, then reinforcement learning",
    "version": "print the version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = _parser().parse_args(given[:1]).command  # what follows is for the command itself
    return _run(command, given[1:])


def _run(command: str, argv: list[str]) -> int:
    match command:
        case "up":
            from farstep.cli import up

            return up.main(argv)
        case "status":
            from farstep.cli import status

            return status.main(argv)
        case "checkpoints":
            from farstep.cli import checkpoints

            return checkpoints.main(argv)
        case "demo":
            from farstep.cli import demo

            return demo.main(argv)
        case _:
            sys.stdout.write(_version() + "\n")
            return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="farstep", description="Train LoRA adapters step by step, on GPUs that are somewhere else."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _version() -> str:
    return f"farstep {version('farstep')}"


if __name__ == "__main__":
    sys.exit(main())
