"""`farstep up`: control plane, trainer and sampler on this machine until Ctrl-C.

It shows progress while they start, then how to connect, then nothing. The key is never printed, so that no
scroll-back, recording or log of a terminal holds it: it lies in `local.json`, which only its owner can read
and where `ServiceClient()` finds it.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from farstep.cli.local_stack import LocalStack, LocalStackError, default_home

_PASSED_ON = (
    "trainer_replicas",
    "journal_dir",
    "weight_sync_uri",
    "served_name",
    "tool_call_parser",
    "idle_timeout",
    "max_stacks",
)
_SWITCHES = ("custom_losses", "tinker_jwt")

_HOW_TO_CONNECT = """\
Farstep runs at {base_url}; Ctrl-C stops it.

  model    {names}
  trainer  {trainer_url}
  sampler  {sampler_url}
  store    {store}
  logs     {logs}
  key      in {local_file}

In Python on this machine:
{home_note}
  from farstep import ServiceClient
  service = ServiceClient()
  trainer = service.create_lora_training_client("{model}", rank=16)

For any other program:

  export FARSTEP_BASE_URL={base_url}
  export FARSTEP_API_KEY="$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["api_key"])' {local_arg})"

For programs of the Tinker SDK, after that:

  export TINKER_BASE_URL=$FARSTEP_BASE_URL TINKER_API_KEY=tml-$FARSTEP_API_KEY
"""


def main(argv: list[str]) -> int:
    """The exit code: 0 when it was stopped, 1 when it did not start or ended by itself."""
    parser = argparse.ArgumentParser(prog="farstep up")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    console, errors = Console(), Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped from outside, as by Ctrl-C
    try:
        with contextlib.ExitStack() as stopping:
            with console.status("") as shown:
                stack = stopping.enter_context(
                    _stack(arguments, on_wait=lambda s: shown.update(_waiting(arguments, s)))
                )
            console.print(_how_to_connect(stack, arguments), markup=False, highlight=False, soft_wrap=True)
            stack.wait()
    except LocalStackError as error:
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
    return 0


def _stack(arguments: argparse.Namespace, *, on_wait: Callable[[float], None]) -> LocalStack:
    return LocalStack(
        model=arguments.model,
        host=arguments.host,
        port=arguments.port,
        replicas=arguments.replicas,
        device=arguments.device,
        home=arguments.home,
        store=arguments.store,
        more=_passed_on(arguments),
        database=arguments.database,
        on_wait=on_wait,
    )


def _passed_on(arguments: argparse.Namespace) -> list[str]:
    """What the control plane is told as it is, where it was said at all."""
    flags = []
    for name in _PASSED_ON:
        value = getattr(arguments, name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        flags += [f"--{name.replace('_', '-')}={each}" for each in values]
    switches = [f"--{name.replace('_', '-')}" for name in _SWITCHES if getattr(arguments, name)]
    return [*flags, *switches]


def _waiting(arguments: argparse.Namespace, elapsed_s: float) -> str:
    what = "sampler" if arguments.replicas == 1 else f"{arguments.replicas} samplers"
    return f"starting control plane, trainer and {what} for {arguments.model} … {elapsed_s:.0f} s"


def _how_to_connect(stack: LocalStack, arguments: argparse.Namespace) -> str:
    local_file = stack.home / "local.json"
    needs_home = stack.home != default_home()
    return _HOW_TO_CONNECT.format(
        base_url=stack.base_url,
        trainer_url=stack.trainer_url,
        sampler_url=stack.sampler_url,
        model=arguments.model,
        names=", ".join([arguments.model, *(arguments.served_name or [])]),
        store=stack.store,
        logs=stack.home / "logs",
        local_file=local_file,
        local_arg=shlex.quote(str(local_file)),
        home_note=f"\n  # with FARSTEP_HOME={shlex.quote(str(stack.home))} in its environment" if needs_home else "",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs control plane, trainer and sampler on this machine until stopped."
    parser.add_argument("--model", default="farstep/tiny", help="model id or directory (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address of this machine to listen on (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8787, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="sampler processes (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:0 (default: %(default)s)")
    _add_passed_on(parser)
    parser.add_argument(
        "--store",
        default="",
        metavar="PLACE",
        help="of checkpoints: directory or s3://bucket/prefix (default: HOME/store)",
    )
    parser.add_argument(
        "--database",
        default="",
        metavar="URL",
        help="postgresql://user@host/name (default: $FARSTEP_DATABASE_URL, or a SQLite file in HOME)",
    )
    parser.add_argument(
        "--home", type=Path, metavar="FOLDER", help="state, logs and checkpoints (default: $FARSTEP_HOME or ~/.farstep)"
    )


def _add_passed_on(parser: argparse.ArgumentParser) -> None:
    servers = parser.add_argument_group("trainers and samplers")
    servers.add_argument(
        "--trainer-replicas", type=int, metavar="N", help="processes that train the model (default: 1)"
    )
    servers.add_argument(
        "--journal-dir", type=_absolute, metavar="FOLDER", help="of trainers' journals (default: HOME/journals)"
    )
    servers.add_argument(
        "--weight-sync-uri",
        metavar="URI",
        help="where trainers write policies for samplers elsewhere: file:// or s3://",
    )
    servers.add_argument(
        "--served-name",
        "--served-model-name",
        action="append",
        metavar="NAME[=MODEL]",
        help="another name of the model, or the name of another one, loaded when it is asked for; may be repeated",
    )
    servers.add_argument(
        "--custom-losses", action="store_true", help="let trainers compute losses that clients send in as graphs"
    )
    servers.add_argument("--tool-call-parser", metavar="FORMAT", help="how the model writes tool calls")
    parser.add_argument(
        "--tinker-jwt", action="store_true", help="have clients of the Tinker SDK exchange their key for a token"
    )
    residency = parser.add_argument_group("what is loaded")
    residency.add_argument(
        "--idle-timeout",
        type=float,
        metavar="SECONDS",
        help="stop other models that nobody has used for that long; 0: never (default: 1800)",
    )
    residency.add_argument("--max-stacks", type=int, metavar="N", help="load at most N base models at once")


def _absolute(text: str) -> Path:
    return Path(text).expanduser().resolve()
