"""`farstep sessions`: who is connected, and who was."""

from __future__ import annotations

import argparse

from farstep.cli import command
from farstep.cli.output import Column, ago, print_json, print_lines, print_table
from farstep.control import ControlClient
from farstep.records import SessionInfo

_COLUMNS = (
    Column[SessionInfo]("session", lambda session: session.session_id),
    Column[SessionInfo]("state", lambda session: "open" if session.closed_at is None else "closed"),
    Column[SessionInfo]("made", lambda session: ago(session.created_at), drop=1),
    Column[SessionInfo]("last seen", lambda session: ago(session.last_seen_at), drop=2),
    Column[SessionInfo]("closed", lambda session: ago(session.closed_at), drop=4),
    Column[SessionInfo]("project", lambda session: session.project, drop=3),
    Column[SessionInfo]("metadata", lambda session: _metadata(session), drop=5),
    Column[SessionInfo]("reuses", lambda session: session.reuse_from_session_id, drop=6),
)


def main(argv: list[str]) -> int:
    return command.run("sessions", add_arguments, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Sessions: what a ServiceClient opens, and closes at its end."
    listing = command.Subcommands(parser).add("list", _list, "list sessions, the newest last")
    listing.add_argument("--open", action="store_true", help="those that are open alone")
    command.add_list_options(listing)


def _list(client: ControlClient, arguments: argparse.Namespace) -> None:
    sessions = client.list_sessions()
    wanted = [session for session in sessions if session.closed_at is None or not arguments.open]
    found = command.newest(wanted, arguments)
    if arguments.quiet:
        print_lines([session.session_id for session in found])
    elif arguments.json:
        print_json(found)
    else:
        print_table(found, _COLUMNS, nothing="no sessions")


def _metadata(session: SessionInfo) -> str:
    return ", ".join(f"{name}={value}" for name, value in session.user_metadata.items())
