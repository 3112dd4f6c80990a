"""What `python -m farstep_infra up` is told: flags and environment, read and checked once."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from farstep_infra.control import requests
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.machine import Machine
from farstep_infra.control.residency import DEFAULT_IDLE_TIMEOUT_S
from farstep_infra.control.served_models import ServedModels
from farstep_infra.home import Home
from farstep_proto.errors import InvalidInput

DEFAULT_MODEL = "farstep/tiny"
DEFAULT_PORT = 8787
SESSION_SILENCE_S = 24 * 3600.0
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - these are refused


@dataclass(frozen=True, slots=True)
class Settings:
    """What `up` was told; `api_key` empty means the home's own."""

    home: Path
    store: str
    served: ServedModels
    host: str
    port: int
    replicas: int
    device: str
    api_key: str
    database: str
    session_silence_s: float
    trainer_replicas: int
    weight_sync_uri: str
    custom_losses: bool
    front_flags: tuple[str, ...]
    journals: Path
    idle_timeout_s: float
    max_stacks: int
    tinker_jwt: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model to start with (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address of this machine to listen on (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="sampler processes (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    parser.add_argument("--home", type=Path, default=None, help="default: $FARSTEP_HOME or ~/.farstep")
    parser.add_argument(
        "--store",
        default="",
        metavar="PLACE",
        help="of checkpoints: directory or s3://bucket/prefix (default: HOME/store)",
    )
    parser.add_argument(
        "--database",
        default=os.environ.get("FARSTEP_DATABASE_URL", ""),
        metavar="URL",
        help="postgresql://user:password@host/name (default: $FARSTEP_DATABASE_URL, or a SQLite file in HOME)",
    )
    _add_server_flags(parser.add_argument_group("what trainers and samplers are told"))
    _add_residency_flags(parser.add_argument_group("when models are loaded"))
    parser.add_argument(
        "--tinker-jwt", action="store_true", help="have clients of the Tinker SDK exchange their key for a token"
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--log-level", default="INFO", help="(default: %(default)s)")


def _add_server_flags(servers: argparse._ArgumentGroup) -> None:
    servers.add_argument(
        "--trainer-replicas", type=int, default=1, metavar="N", help="processes that train the model (default: 1)"
    )
    servers.add_argument(
        "--journal-dir", type=Path, metavar="DIR", help="of trainers' journals (default: HOME/journals)"
    )
    servers.add_argument(
        "--weight-sync-uri",
        default="",
        metavar="URI",
        help="where trainers write their policies for samplers elsewhere",
    )
    servers.add_argument(
        "--served-name",
        "--served-model-name",
        action="append",
        default=[],
        metavar="NAME[=MODEL]",
        help="another name of the base model, or the name of another one, which is loaded when it is asked for",
    )
    servers.add_argument(
        "--custom-losses", action="store_true", help="let trainers compute losses that clients send in as graphs"
    )
    servers.add_argument("--tool-call-parser", default="", metavar="FORMAT", help="how the model writes tool calls")


def _add_residency_flags(fleet: argparse._ArgumentGroup) -> None:
    fleet.add_argument(
        "--idle-timeout",
        type=float,
        default=DEFAULT_IDLE_TIMEOUT_S,
        metavar="SECONDS",
        help="stop what nobody has used for that long, but for --model; 0: never (default: %(default).0f)",
    )
    fleet.add_argument(
        "--max-stacks", type=int, default=0, metavar="N", help="load so many base models at once (default: no limit)"
    )
    fleet.add_argument(
        "--session-silence",
        type=float,
        default=SESSION_SILENCE_S,
        metavar="SECONDS",
        help="close sessions whose client was silent for that long (default: %(default).0f)",
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Raises:
    SystemExit: an argument that cannot be.
    """
    _check(arguments)
    home = (arguments.home or Path(os.environ.get("FARSTEP_HOME") or Path.home() / ".farstep")).expanduser().resolve()
    return Settings(
        home=home,
        store=_store(arguments.store, home),
        served=_served(arguments),
        host=arguments.host,
        port=arguments.port,
        replicas=arguments.replicas,
        device=arguments.device,
        api_key=os.environ.get("FARSTEP_API_KEY", ""),
        database=arguments.database or url_of_file(Home(home).database),
        session_silence_s=arguments.session_silence,
        trainer_replicas=arguments.trainer_replicas,
        weight_sync_uri=arguments.weight_sync_uri,
        custom_losses=arguments.custom_losses,
        front_flags=_front_flags(arguments),
        journals=(arguments.journal_dir or Home(home).journals).expanduser().resolve(),
        idle_timeout_s=arguments.idle_timeout,
        max_stacks=arguments.max_stacks,
        tinker_jwt=arguments.tinker_jwt,
    )


def _check(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.replicas <= requests.MAX_REPLICAS:
        raise SystemExit(f"--replicas: {arguments.replicas} is not between 1 and {requests.MAX_REPLICAS}")
    if arguments.host in _WILDCARDS:
        raise SystemExit(f"--host: clients are given this address, so {arguments.host} will not do; name one")
    if not arguments.session_silence > 0:
        raise SystemExit(f"--session-silence: {arguments.session_silence} is not a number of seconds")
    if not arguments.idle_timeout >= 0:
        raise SystemExit(f"--idle-timeout: {arguments.idle_timeout} is not a number of seconds")
    if arguments.max_stacks < 0:
        raise SystemExit(f"--max-stacks: {arguments.max_stacks} is negative")
    if arguments.trainer_replicas < 1:
        raise SystemExit(f"--trainer-replicas: {arguments.trainer_replicas} is less than 1")
    try:
        Machine.here().check_trainer_replicas(arguments.trainer_replicas, device=arguments.device)
    except InvalidInput as error:
        raise SystemExit(f"--trainer-replicas: {error.message}") from error


def _front_flags(arguments: argparse.Namespace) -> tuple[str, ...]:
    return (f"--tool-call-parser={arguments.tool_call_parser}",) if arguments.tool_call_parser else ()


def _served(arguments: argparse.Namespace) -> ServedModels:
    try:
        return ServedModels.of(arguments.model, arguments.served_name)
    except InvalidInput as error:
        flag = "--model" if error.field == "base_model" else "--served-name"
        raise SystemExit(f"{flag}: {error.message}") from error


def _store(place: str, home: Path) -> str:
    """Where every process of this installation finds the checkpoints, whatever its working directory."""
    if "://" in place:
        return place
    return str(Path(place).expanduser().resolve()) if place else str(Home(home).store)
