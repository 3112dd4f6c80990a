"""`farstep logs`: what processes have written, and write. Of one as it is; of several, each line with its name."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Callable

from farstep._loop import run
from farstep.cli import command
from farstep.cli.output import print_json_line, visible
from farstep.control import ControlClient

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
    processes = (await requests.status()).processes
    names = [process.name for process in processes if process.name]
    width = max(map(len, names), default=0)
    texts = {name: requests.log_text(name, tail=arguments.tail, follow=arguments.follow) for name in names}
    printing = [_print(text, _printer(name, width, arguments)) for name, text in texts.items()]
    if arguments.follow:
        async with asyncio.TaskGroup() as together:
            for each in printing:
                together.create_task(each)
    else:
        for each in printing:
            await each


async def _print(text: AsyncGenerator[str, None], say: Callable[[str], None]) -> None:
    """Whole lines, so that several processes do not meet in one."""
    rest = ""
    async for piece in text:
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
