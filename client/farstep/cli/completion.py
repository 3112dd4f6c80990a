"""`farstep completion`: a script that teaches a shell the commands, made from the very parsers that read them.

Ids of what there is (runs, checkpoints, …) come from the list commands, asked when Tab is pressed.
"""

from __future__ import annotations

import argparse
import sys

import shtab

SHELLS = ("bash", "zsh", "fish")
_ASKED = "farstep {} list --quiet 2>/dev/null"
# What an argument is, by the name that its help gives it.
_VALUES = {
    "RUN": shtab.cmd(_ASKED.format("runs")),
    "CHECKPOINT": shtab.cmd(_ASKED.format("checkpoints")),
    "SAMPLER": shtab.cmd(_ASKED.format("samplers")),
    "SESSION": shtab.cmd(_ASKED.format("sessions")),
    "KEY": shtab.cmd(_ASKED.format("keys")),
    "PROJECT": shtab.cmd(_ASKED.format("projects")),
    "FOLDER": shtab.DIRECTORY,
    "FOLDER_OR_HUB_ID": shtab.DIRECTORY,
    "FILE": shtab.FILE,
}
_HOW = """\
bash:  farstep completion bash > ~/.local/share/bash-completion/completions/farstep
zsh:   farstep completion zsh > a file named _farstep in a folder of $fpath
fish:  farstep completion fish > ~/.config/fish/completions/farstep.fish
"""


def main(argv: list[str]) -> int:
    """The exit code."""
    from farstep.cli.main import whole_parser

    parser = argparse.ArgumentParser(prog="farstep completion")
    add_arguments(parser)
    shell = parser.parse_args(argv).shell
    whole = whole_parser()
    _mark(whole)
    sys.stdout.write(shtab.complete(whole, shell))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Prints a script that completes commands, options and ids in a shell."
    parser.epilog = _HOW
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS)


def _mark(parser: argparse.ArgumentParser) -> None:
    """Says of every argument of the tree what its values are."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark(below)
        elif isinstance(action.metavar, str) and action.metavar in _VALUES:
            action.complete = _VALUES[action.metavar]  # type: ignore[attr-defined]
