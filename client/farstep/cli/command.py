"""What the commands that ask a control plane share: their options, their connection, how they refuse and end.

A command is a module with `add_arguments(parser)`, which says what it takes and sets `do`, and `main(argv)`. It knows
nothing of what a command prints, beyond the one line of a refusal.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from farstep.cli.output import print_error
from farstep.control import ControlClient
from farstep.errors import FarstepError
from farstep_proto.errors import ApiError

T = TypeVar("T")
Do = Callable[[ControlClient, argparse.Namespace], None]

PATIENCE_S = 2.0  # a hiccup is waited for; a person is told soon that nothing is there
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhdw])", re.ASCII)


class Refused(Exception):
    """It was not done; the message says why, in one line."""


def run(name: str, add_arguments: Callable[[argparse.ArgumentParser], None], argv: list[str]) -> int:
    """The exit code: 0 when it was done, 1 when it was refused, with the reason on standard error."""
    parser = argparse.ArgumentParser(prog=f"farstep {name}")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.home is not None:
        os.environ["FARSTEP_HOME"] = str(arguments.home.expanduser())
    do: Do = arguments.do
    try:
        with ControlClient(base_url=arguments.base_url, timeout=PATIENCE_S) as client:
            do(client, arguments)
    except (FarstepError, ApiError, Refused) as error:
        print_error(str(error))
        return 1
    return 0


def add_connection(parser: argparse.ArgumentParser, *, is_leaf: bool = False) -> None:
    """Where the control plane is; the key is never an argument, since other users of a machine can read those."""
    absent = argparse.SUPPRESS if is_leaf else None  # what was said before a subcommand is kept
    parser.add_argument("--base-url", metavar="URL", default=absent, help="of the control plane (default: as found)")
    parser.add_argument(
        "--home", type=Path, metavar="FOLDER", default=absent, help="of `farstep up` (default: ~/.farstep)"
    )


class Subcommands:
    """The subcommands of one command, each with the options that all have."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        add_connection(parser)
        self._commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(self, name: str, do: Do, summary: str) -> argparse.ArgumentParser:
        added = self._commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add_connection(added, is_leaf=True)
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(do=do)
        return added


def add_list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=positive, metavar="N", help="the newest N alone (default: all)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids alone, one a line")


def newest(found: Sequence[T], arguments: argparse.Namespace) -> Sequence[T]:
    """As many as `--limit` says of a list that has the oldest first."""
    return found if arguments.limit is None else found[-arguments.limit :]


def add_yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def confirm(what: str, arguments: argparse.Namespace) -> None:
    """Asks whether to; where there is nobody to ask, only `--yes` will do.

    Raises:
        Refused: the answer is not yes.
    """
    if arguments.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused(f"{what}: this cannot be taken back, and here is no terminal to ask; say --yes")
    sys.stderr.write(f"{what}: this cannot be taken back. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Refused("nothing was done")


def named(what: str, names: Iterable[str]) -> str:
    """`run a`, or `3 runs`: for a question."""
    given = list(names)
    return f"{what} {given[0]}" if len(given) == 1 else f"{len(given)} {what}s"


def positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seconds(text: str) -> int:
    """`90`, `90s`, `5m`, `12h`, `7d`, `2w`."""
    found = _DURATION.fullmatch(text if not text.isdecimal() else f"{text}s")
    if found is None or (length := int(found[1]) * _UNITS_S[found[2]]) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time such as 90s, 5m, 12h, 7d or 2w")
    return length


def day(text: str) -> date:
    """A day (UTC), or the day so long ago."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        pass
    try:
        return (datetime.now(UTC) - timedelta(seconds=seconds(text))).date()
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a day nor a length of time such as 7d") from error


def run_here(
    name: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    argv: list[str],
    do: Callable[[argparse.Namespace], int],
    *,
    epilog: str = "",
) -> int:
    """As `run`, of a command that works on this machine and asks a control plane at most on the way: `do`'s exit code.

    What says where that is goes into the environment, where whatever the command loads looks for it.
    """
    parser = argparse.ArgumentParser(prog=f"farstep {name}", epilog=epilog or None)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    if getattr(arguments, "home", None) is not None:
        os.environ["FARSTEP_HOME"] = str(arguments.home.expanduser())
    if getattr(arguments, "base_url", None) is not None:
        os.environ["FARSTEP_BASE_URL"] = arguments.base_url
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return do(arguments)
    except (FarstepError, ApiError, Refused) as error:
        print_error(str(error))
        return 1


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """What it says, without where in our code it was said."""
    print_error(f"warning: {message}")
