"""`farstep logs`: what processes have written, and write. Of one as it is; of several, each line with its name."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from farstep._loop import run
from farstep.cli import command
from farstep.cli.output import print_json_line, visible
from farstep.control import ControlClient
from farstep.errors import NotFoundError

_TAIL = 100


def main(argv: list[str]) -> int:
    return command.run("logs", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Shows what a process of the control plane has written, or what all of them have."
    command.add_connection(parser)
    parser.add_argument(
        "name", nargs="?", metavar="PROCESS", help="as `farstep status` shows it, such as trainer-1 (default: all)"
    )
    parser.add_argument(
        "--tail", type=command.positive, default=_TAIL, metavar="N", help="the last N lines (default: %(default)s)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.set_defaults(do=_logs)


def _logs(client: ControlClient, arguments: argparse.Namespace) -> None:
    run(_print_all(client, arguments))


async def _print_all(client: ControlClient, arguments: argparse.Namespace) -> None:
    requests = client._requests
    if arguments.name is not None:
        text = requests.log_text(arguments.name, tail=arguments.tail, follow=arguments.follow)
        await _print(text, _printer(arguments.name, 0, arguments))
        return
    names = [process.name for process in (await requests.status()).processes if process.log_path]
    width = max(map(len, names), default=0)

    async def show(name: str) -> None:
        text = requests.log_text(name, tail=arguments.tail, follow=arguments.follow)
        with suppress(NotFoundError):  # it has ended since it was listed
            await _print(text, _printer(name, width, arguments))

    if not arguments.follow:
        for name in names:
            await show(name)
        return
    following = [asyncio.create_task(show(name)) for name in names]
    try:
        await asyncio.gather(*following)
    finally:
        for each in following:
            each.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def _print(text: AsyncGenerator[str, None], say: Callable[[str], None]) -> None:
    """Whole lines, so that several processes do not meet in one."""
    rest = ""
    async with aclosing(text) as pieces:
        async for piece in pieces:
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                say(line)
            sys.stdout.flush()
    if rest:
        say(rest)


def _printer(name: str, width: int, arguments: argparse.Namespace) -> Callable[[str], None]:
    """Args: `width` of the longest name, 0 where there is but one."""
    prefix = f"{name:{width}} | " if width else ""
    is_seen = sys.stdout.isatty()

    def say(line: str) -> None:
        if arguments.json:
            print_json_line({"process": name, "line": line})
        else:
            # A pipe gets what was written; a terminal must not obey it.
            sys.stdout.write(f"{prefix}{visible(line.expandtabs()) if is_seen else line}\n")

    return say
