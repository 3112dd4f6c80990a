"""`farstep keys`: who may come in. A secret is shown once, when its key is made."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from farstep.cli import command
from farstep.cli.output import Column, ago, moment, print_details, print_json, print_lines, print_table
from farstep.cli.tinker_env import tinker_key
from farstep.control import ControlClient
from farstep.records import KeyInfo

_COLUMNS = (
    Column[KeyInfo]("key", lambda key: key.key_id),
    Column[KeyInfo]("state", lambda key: _state(key)),
    Column[KeyInfo]("name", lambda key: key.name, drop=1),
    Column[KeyInfo]("sees", lambda key: "everything" if key.operator else key.project, drop=2),
    Column[KeyInfo]("secret", lambda key: f"{key.hint}…", drop=6),
    Column[KeyInfo]("made", lambda key: ago(key.created_at), drop=5),
    Column[KeyInfo]("last used", lambda key: ago(key.last_used_at), drop=3),
    Column[KeyInfo]("expires", lambda key: ago(key.expires_at), drop=4),
)


def main(argv: list[str]) -> int:
    return command.run("keys", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "API keys. Each is a project's, or an operator's."
    commands = command.Subcommands(parser)
    making = commands.add("create", _create, "make a key, and show its secret this once")
    making.add_argument("--name", default="", help="for people")
    owner = making.add_mutually_exclusive_group()
    owner.add_argument("--project", metavar="PROJECT", help="what it may see (default: the default project)")
    owner.add_argument(
        "--operator", action="store_true", help="a key that sees every project and does what operators do"
    )
    making.add_argument(
        "--ttl", type=command.seconds, metavar="TIME", help="such as 12h or 30d (default: until revoked)"
    )
    making.add_argument(
        "--tinker", action="store_true", help="show the secret as TINKER_API_KEY takes it, with tml- before it"
    )
    command.add_list_options(commands.add("list", _list, "list keys, revoked ones too, without their secrets"))
    revoking = commands.add("revoke", _revoke, "end keys")
    revoking.add_argument("key_id", metavar="KEY", nargs="+")
    command.add_yes(revoking)


def _create(client: ControlClient, arguments: argparse.Namespace) -> None:
    made = client.create_key(
        arguments.name, project=arguments.project, operator=arguments.operator, ttl_seconds=arguments.ttl
    )
    if arguments.tinker and made.secret:
        made = replace(made, secret=tinker_key(made.secret))
    if arguments.json:
        print_json(made)
        return
    if not sys.stdout.isatty():
        print_lines([made.secret])  # alone, for `export FARSTEP_API_KEY="$(farstep keys create …)"`
        return
    key = made.key
    facts = {
        "key": key.key_id,
        "name": key.name,
        "sees": "everything" if key.operator else key.project,
        "expires": moment(key.expires_at) or "never",
        "secret": made.secret,
    }
    print_details({name: value for name, value in facts.items() if value})
    sys.stderr.write("The secret is not kept and cannot be shown again.\n")


def _list(client: ControlClient, arguments: argparse.Namespace) -> None:
    found = command.newest(client.list_keys(), arguments)
    if arguments.quiet:
        print_lines([key.key_id for key in found])
    elif arguments.json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, nothing="no keys")


def _revoke(client: ControlClient, arguments: argparse.Namespace) -> None:
    command.confirm(f"revoke {command.named('key', arguments.key_id)}", arguments)
    for key_id in arguments.key_id:
        client.revoke_key(key_id)
    if arguments.json:
        print_json({"revoked": arguments.key_id})


def _state(key: KeyInfo) -> str:
    if key.revoked_at is not None:
        return "revoked"
    is_expired = key.expires_at is not None and ago(key.expires_at).endswith("ago")
    return "expired" if is_expired else "active"
