"""The `farstep` command: it finds the subcommand, which does the rest.

A subcommand is a module with `main(argv) -> exit code` and `add_arguments(parser)`; only the one that is asked for is
imported. Exit codes: 0 done, 1 refused, 2 wrong usage, 130 Ctrl-C, 141 the reader of a pipe went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

_COMMANDS = {
    "up": "run control plane, trainer and sampler on this machine until stopped",
    "status": "show what runs",
    "train": "run a trainer, from a config.yaml or a Python file",
    "check": "whether a run could begin: configuration, packages, functions, every row; without a GPU",
    "process-data": "make tokens of a configuration's data, without a GPU or a server",
    "report": "write the report of a run from its folder",
    "init": "write a config.yaml and data to begin with",
    "env": "show versions, extras, devices and whether a server answers",
    "runs": "list, show, deactivate and delete runs",
    "checkpoints": "list, show, remove, keep for a while, export, import and push checkpoints",
    "samplers": "list, show and stop samplers",
    "sessions": "list sessions",
    "usage": "show what was used: tokens, and seconds of devices",
    "logs": "show what processes write",
    "keys": "create, list and revoke API keys",
    "projects": "create, list, show, limit and delete projects",
    "tinker-env": "print the variables by which programs of the Tinker SDK find this control plane",
    "demo": "the whole way once on an embedded model: fine-tuning, then reinforcement learning",
    "completion": "print a script that completes commands in a shell",
    "version": "print the version",
}
_INTERRUPTED = 130
_NOBODY_READS = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            command = _parser().parse_args(given[:1]).command  # what follows is for the command itself
            return _module(command).main(given[1:])  # type: ignore[no-any-return]
        finally:
            sys.stdout.flush()  # here, where it can be caught that nobody reads
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is not said at exit, either
        return _NOBODY_READS


def whole_parser() -> argparse.ArgumentParser:
    """Every command with every argument, for completion and documentation."""
    parser, commands = _bare_parser()
    for name, summary in _COMMANDS.items():
        add_arguments = getattr(_module(name), "add_arguments", None)
        below = commands.add_parser(name, help=summary, description=summary)
        if add_arguments is not None:
            add_arguments(below)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"farstep.cli.{command.replace('-', '_')}")


def _parser() -> argparse.ArgumentParser:
    parser, commands = _bare_parser()
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _bare_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="farstep", description="Train LoRA adapters step by step, on GPUs that are somewhere else."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    return parser, parser.add_subparsers(dest="command", metavar="COMMAND", required=True)


class _Version(argparse.Action):
    """The version is looked up where it is asked for: that takes longer than all the rest of a start."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        from farstep.cli import version

        parser.exit(version.main([]))


if __name__ == "__main__":
    sys.exit(main())
