"""`farstep tinker-env`: the two variables by which programs of the Tinker SDK find this control plane.

For `eval "$(farstep tinker-env)"`. A terminal is shown no key unless it asks, so that no scroll-back holds it.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from farstep._settings import load_settings
from farstep.cli import command
from farstep.cli.output import print_lines
from farstep.control import ControlClient

PREFIX = "tml-"  # the Tinker SDK takes no key without it
_SHOWN_CHARACTERS = 8


def main(argv: list[str]) -> int:
    return command.run("tinker-env", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        'Prints TINKER_BASE_URL and TINKER_API_KEY for a shell: eval "$(farstep tinker-env)". '
        "Programs that import tinker then run against this control plane."
    )
    command.add_connection(parser)
    parser.add_argument("--show-key", action="store_true", help="show the key on a terminal, too")
    parser.set_defaults(do=_print)


def tinker_key(secret: str) -> str:
    """A key as the Tinker SDK takes it."""
    return secret if secret.startswith(PREFIX) else PREFIX + secret


def _print(client: ControlClient, arguments: argparse.Namespace) -> None:
    secret = load_settings(api_key=None, base_url=arguments.base_url, reuse_from_session_id=None).key.secret
    if secret is None:
        raise command.Refused(f"no key is known for {client.base_url}; set FARSTEP_API_KEY, or start `farstep up`")
    is_masked = sys.stdout.isatty() and not arguments.show_key
    key = tinker_key(secret)
    shown = key[: len(PREFIX) + _SHOWN_CHARACTERS] + "…" if is_masked else shlex.quote(key)
    print_lines([f"export TINKER_BASE_URL={shlex.quote(client.base_url)}", f"export TINKER_API_KEY={shown}"])
    if is_masked:
        sys.stderr.write('The key is hidden here; `eval "$(farstep tinker-env)"` sets both, --show-key shows it.\n')
