"""`python -m farstep_infra up`: the control plane with its processes, until it is told to stop.

It binds its port first and says so in `local.json`, then starts the default model's trainer and sampler, and
announces itself when all of them are ready. However it ends, its children end too.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.applications import Starlette

from farstep_infra.control import requests
from farstep_infra.control.app import make_control_app
from farstep_infra.control.commands import Commands
from farstep_infra.control.control import Control
from farstep_infra.control.db import Database, url_of_file
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.health import HealthWatch
from farstep_infra.control.housekeeping import Housekeeping
from farstep_infra.control.keys import IssuedKeys
from farstep_infra.control.machine import Machine
from farstep_infra.control.placements import Placements
from farstep_infra.control.projects import Projects
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.residency import DEFAULT_IDLE_TIMEOUT_S, LIVE_S, Residency
from farstep_infra.control.run_stacks import RunStacks
from farstep_infra.control.runs import Runs
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.schema import SchemaRefused
from farstep_infra.control.servers import Site
from farstep_infra.control.sessions import Sessions
from farstep_infra.control.stacks import Stack
from farstep_infra.control.trainers import Trainers
from farstep_infra.control.usage import UsageLedger
from farstep_infra.control.usage_collector import UsageCollector
from farstep_infra.control.uses import Uses
from farstep_infra.home import Home
from farstep_infra.launchers.base import LaunchFailed, Launcher
from farstep_infra.launchers.local import LocalLauncher, torch_environment
from farstep_infra.launchers.ports import choose_port
from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_proto.errors import ApiError, InvalidInput, Unavailable
from farstep_serving.keys import KeyRing
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of

log = logging.getLogger(__name__)

DEFAULT_MODEL = "farstep/tiny"
DEFAULT_PORT = 8787
SWEEP_EVERY_S = 600.0
TRIM_LOGS_EVERY_S = 30.0
SESSION_SILENCE_S = 24 * 3600.0
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - these are refused


@dataclass(frozen=True, slots=True)
class Settings:
    """What `up` was told; `api_key` empty means the home's own."""

    home: Path
    store: str
    model: str
    host: str
    port: int
    replicas: int
    device: str
    api_key: str
    database: str
    session_silence_s: float
    trainer_replicas: int
    weight_sync_uri: str
    front_flags: tuple[str, ...]
    journals: Path
    idle_timeout_s: float
    max_stacks: int


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
    parser.add_argument(
        "--session-silence",
        type=float,
        default=SESSION_SILENCE_S,
        metavar="SECONDS",
        help="close sessions whose client was silent for that long (default: %(default).0f)",
    )
    servers = parser.add_argument_group("what trainers and samplers are told")
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
        "--served-model-name",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of the base model, OpenAI's",
    )
    servers.add_argument("--tool-call-parser", default="", metavar="FORMAT", help="how the model writes tool calls")
    fleet = parser.add_argument_group("when models are loaded")
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
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--log-level", default="INFO", help="(default: %(default)s)")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Raises:
    SystemExit: an argument that cannot be.
    """
    try:
        requests.check_base_model(arguments.model)
    except InvalidInput as error:
        raise SystemExit(f"--model: {error.message}") from error
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
    try:
        Machine.here().check_trainer_replicas(arguments.trainer_replicas, device=arguments.device)
    except InvalidInput as error:
        raise SystemExit(f"--trainer-replicas: {error.message}") from error
    home = (arguments.home or Path(os.environ.get("FARSTEP_HOME") or Path.home() / ".farstep")).expanduser().resolve()
    return Settings(
        home=home,
        store=_store(arguments.store, home),
        model=arguments.model,
        host=arguments.host,
        port=arguments.port,
        replicas=arguments.replicas,
        device=arguments.device,
        api_key=os.environ.get("FARSTEP_API_KEY", ""),
        database=arguments.database or url_of_file(Home(home).database),
        session_silence_s=arguments.session_silence,
        trainer_replicas=max(1, arguments.trainer_replicas),
        weight_sync_uri=arguments.weight_sync_uri,
        front_flags=_front_flags(arguments),
        journals=(arguments.journal_dir or Home(home).journals).expanduser().resolve(),
        idle_timeout_s=arguments.idle_timeout,
        max_stacks=arguments.max_stacks,
    )


def _front_flags(arguments: argparse.Namespace) -> tuple[str, ...]:
    names = tuple(f"--served-model-name={name}" for name in arguments.served_model_name)
    return (*names, *((f"--tool-call-parser={arguments.tool_call_parser}",) if arguments.tool_call_parser else ()))


def _store(place: str, home: Path) -> str:
    """Where every process of this installation finds the checkpoints, whatever its working directory."""
    if "://" in place:
        return place
    return str(Path(place).expanduser().resolve()) if place else str(Home(home).store)


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM; the exit code."""
    setup_logging(arguments.log_level)
    settings = settings_of(arguments)
    home = Home(settings.home)
    home.prepare()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end as KeyboardInterrupt, after the clean-up
    if arguments.exit_with_parent:
        exit_with_parent()
    with home.locked(), _bound(settings, home) as sock:
        up = _Up(settings, home, sock)
        try:
            home.write_local(base_url=url_of(sock), api_key=up.api_key)
            with suppress(KeyboardInterrupt):
                asyncio.run(up.serve())
        finally:
            home.remove_local()
    return up.exit_code


def _opened(place: str) -> CheckpointStore:
    try:
        return open_store(place)
    except InvalidInput as error:
        raise SystemExit(f"{error.field}: {error.message} {error.hint}".strip()) from error


def _database(url: str) -> Database:
    try:
        return Database(url)
    except InvalidInput as error:
        raise SystemExit(f"{error.field}: {error.message} ({error.hint})") from error


def _bound(settings: Settings, home: Home) -> socket.socket:
    """Clients hold the address: without a port that was asked for it is that of last time, where it is still free."""
    last_port = home.last_port()
    try:
        if settings.port == 0 and last_port:
            with suppress(SystemExit):
                return bind(settings.host, last_port)
        sock = bind(settings.host, settings.port or choose_port(settings.host))
        home.remember_port(sock.getsockname()[1])
        return sock
    except OSError as error:
        raise SystemExit(f"cannot listen on {settings.host}: {error.strerror}") from error
    except SystemExit as error:
        raise SystemExit(f"{error}; choose another port with --port, or --port 0 for a free one") from error


class _Up:
    """The parts, put together and taken apart."""

    def __init__(self, settings: Settings, home: Home, sock: socket.socket) -> None:
        self._settings = settings
        self._home = home
        self._sock = sock
        self._store = _opened(settings.store)
        self._db = _database(settings.database)
        self._provisioning = Provisioning()
        self.api_key = settings.api_key or home.api_key()
        self._keys = IssuedKeys(self._db, KeyRing.of(self.api_key))
        self.exit_code = 1  # until everything has started

    async def serve(self) -> None:
        """Raises:
        SystemExit: the database cannot be used.
        """
        app = make_control_app(keys=self._keys, lifespan=self._lifespan)
        try:
            async with self._db.opened():
                await serve(app, self._sock, on_stop=self._provisioning.release)
        except (SchemaRefused, Unavailable) as error:
            raise SystemExit(f"the database {self._db} cannot be used: {error}") from error

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        headers = {"Authorization": f"Bearer {self.api_key}", "Accept": "application/x-protobuf"}
        environment = {**os.environ, **torch_environment(), "FARSTEP_API_KEY": self.api_key}
        store = self._store
        async with AsyncExitStack() as parts:
            # Children are on this machine: a proxy in the environment is not for them.
            client = await parts.enter_async_context(httpx.AsyncClient(headers=headers, trust_env=False))
            db = self._db
            usage = UsageLedger(db)
            collector = UsageCollector(client, usage, lambda: fleet.workers())
            site = self._site(environment, client, before_stop=lambda url: collector.collect([url]))
            fleet = Fleet(site, Placements(db, host=self._settings.host))
            parts.push_async_callback(fleet.close)
            parts.push_async_callback(self._provisioning.close)
            uses = Uses(db)
            residency = Residency(
                fleet,
                idle_timeout_s=self._settings.idle_timeout_s,
                max_stacks=self._settings.max_stacks,
                last_seen=uses.last_seen,
            )
            stacks = RunStacks(db, fleet, residency, self._provisioning, uses, Trainers(client))
            residency.on_woken, residency.on_rested = stacks.woken, stacks.rested
            control = Control(
                base_url=url_of(self._sock),
                fleet=fleet,
                projects=Projects(db),
                sessions=Sessions(db),
                runs=Runs(db, fleet, stacks, self._provisioning),
                samplers=FreshSamplers(db, fleet, residency, self._provisioning, store),
                checkpoints=Checkpoints(store, secret=self.api_key),
                usage=usage,
                is_ending=lambda: self._provisioning.is_released,
            )
            silent_s = self._settings.session_silence_s
            housekeeping = Housekeeping(db, control.sessions, control.samplers, control.usage, silent_s=silent_s)
            await self._restore(control, residency, uses, stacks)
            app.state.control = control
            self._provisioning.start("sweep", _sweep(store))
            self._provisioning.start("usage", collector.run())
            self._provisioning.start("housekeeping", housekeeping.run())
            self._provisioning.start("health", HealthWatch(fleet, client).run())
            self._provisioning.start("idle-stacks", residency.run())
            self._provisioning.start("logs", _trim_logs(site.launcher))
            yield

    def _site(
        self,
        environment: dict[str, str],
        client: httpx.AsyncClient,
        *,
        before_stop: Callable[[str], Awaitable[None]],
    ) -> Site:
        settings = self._settings
        commands = Commands(
            host=settings.host,
            store=settings.store,
            device=settings.device,
            journals=settings.journals,
            weight_sync_uri=settings.weight_sync_uri,
            front_flags=settings.front_flags,
        )
        return Site(LocalLauncher(self._home.logs, host=settings.host), commands, environment, client, before_stop)

    async def _restore(self, control: Control, residency: Residency, uses: Uses, stacks: RunStacks) -> None:
        """What was there is there again: at once where somebody uses it, else as soon as somebody asks."""
        fleet = control.fleet
        await fleet.restore()
        known = await uses.known_stacks()
        for stack in fleet.stacks:
            if not stack.spec.is_shared and stack.spec.stack_id not in known:
                await fleet.remove(stack)  # whoever it was for came to nothing
        default = await fleet.default(self._settings.model, num_trainers=self._settings.trainer_replicas)
        default.is_pinned = True
        self._provisioning.start("default-model", self._start_default_model(default, residency))
        await control.runs.restore()
        await control.samplers.restore()
        live_s = max(LIVE_S, self._settings.idle_timeout_s or DEFAULT_IDLE_TIMEOUT_S)
        live = await uses.live_stacks(since=time.time() - live_s)
        for stack in fleet.stacks:
            if stack.spec.stack_id in live and stack is not default:
                self._provisioning.start(f"wake-{stack.spec.stack_id}", residency.wake_quietly(stack))
            elif stack is not default:
                await stacks.rested(stack)

    async def _start_default_model(self, stack: Stack, residency: Residency) -> None:
        try:
            await residency.wake(stack, num_samplers=self._settings.replicas)
        except Exception as error:
            is_ours = not isinstance(error, LaunchFailed)
            log.error("%s cannot be served: %s", self._settings.model, error, exc_info=is_ours)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.exit_code = 0
        assert stack.trainer is not None
        announce(
            url=url_of(self._sock),
            trainer_url=stack.trainer.url,
            sampler_url=stack.sampler_url,
            home=str(self._home.directory),
            pid=os.getpid(),
        )


async def _trim_logs(launcher: Launcher) -> None:
    while True:
        await asyncio.sleep(TRIM_LOGS_EVERY_S)
        await launcher.trim_logs()


async def _sweep(store: CheckpointStore) -> None:
    while True:
        try:
            if num_removed := await asyncio.to_thread(store.sweep):
                log.info("removed %d expired or abandoned checkpoints", num_removed)
        except (OSError, ApiError):
            log.exception("the store could not be swept")
        await asyncio.sleep(SWEEP_EVERY_S)
