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
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from starlette.applications import Starlette

from farstep_infra.control import requests
from farstep_infra.control.app import make_control_app
from farstep_infra.control.control import Control
from farstep_infra.control.db import Database, reason_of
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.housekeeping import Housekeeping
from farstep_infra.control.keys import IssuedKeys
from farstep_infra.control.projects import Projects
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.runs import Runs
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.schema import SchemaRefused
from farstep_infra.control.sessions import Sessions
from farstep_infra.control.trainers import Trainers
from farstep_infra.control.usage import UsageLedger
from farstep_infra.home import Home
from farstep_infra.launchers.local import LaunchFailed, torch_environment
from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_proto.errors import ApiError, InvalidInput, Unavailable
from farstep_serving.keys import KeyRing
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of

log = logging.getLogger(__name__)

DEFAULT_MODEL = "farstep/tiny"
DEFAULT_PORT = 8787
SWEEP_EVERY_S = 600.0
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
    )


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
    with home.locked(), _bound(settings) as sock:
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


def _bound(settings: Settings) -> socket.socket:
    try:
        return bind(settings.host, settings.port)
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
        except SchemaRefused as error:
            raise SystemExit(f"the database {self._db} cannot be used: {error}") from error
        except Unavailable as error:
            raise SystemExit(f"the database {self._db} cannot be used: {reason_of(error)}") from error

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        headers = {"Authorization": f"Bearer {self.api_key}", "Accept": "application/x-protobuf"}
        keys = {"FARSTEP_API_KEY": self.api_key, "FARSTEP_CONTROL_URL": url_of(self._sock)}
        environment = {**os.environ, **torch_environment(), **keys}
        environment.pop("FARSTEP_DATABASE_URL", None)  # with its password, and nobody's but ours
        store = self._store
        async with AsyncExitStack() as parts:
            # Children are on this machine: a proxy in the environment is not for them.
            client = await parts.enter_async_context(httpx.AsyncClient(headers=headers, trust_env=False))
            db = self._db
            where = {"host": self._settings.host, "device": self._settings.device, "store": self._settings.store}
            fleet = Fleet(self._home, environment=environment, client=client, **where)
            parts.push_async_callback(fleet.close)
            parts.push_async_callback(self._provisioning.close)
            control = Control(
                base_url=url_of(self._sock),
                fleet=fleet,
                projects=Projects(db),
                sessions=Sessions(db),
                runs=Runs(db, fleet, self._provisioning, Trainers(client)),
                samplers=FreshSamplers(db, fleet, self._provisioning, store),
                checkpoints=Checkpoints(store, secret=self.api_key),
                usage=UsageLedger(db),
            )
            silent_s = self._settings.session_silence_s
            housekeeping = Housekeeping(db, control.sessions, control.samplers, control.usage, silent_s=silent_s)
            await control.runs.mark_lost()
            await control.samplers.mark_lost()
            app.state.control = control
            self._provisioning.start("default-model", self._start_default_model(fleet))
            self._provisioning.start("sweep", _sweep(store))
            self._provisioning.start("housekeeping", housekeeping.run())
            yield

    async def _start_default_model(self, fleet: Fleet) -> None:
        try:
            stack = await fleet.stack(self._settings.model, with_sampler=True, replicas=self._settings.replicas)
        except Exception as error:
            is_ours = not isinstance(error, LaunchFailed)
            log.error("%s cannot be served: %s", self._settings.model, error, exc_info=is_ours)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.exit_code = 0
        assert stack.samplers is not None
        announce(
            url=url_of(self._sock),
            trainer_url=stack.trainer.url,
            sampler_url=stack.samplers.url,
            home=str(self._home.directory),
            pid=os.getpid(),
        )


async def _sweep(store: CheckpointStore) -> None:
    while True:
        try:
            if num_removed := await asyncio.to_thread(store.sweep):
                log.info("removed %d expired or abandoned checkpoints", num_removed)
        except (OSError, ApiError):
            log.exception("the store could not be swept")
        await asyncio.sleep(SWEEP_EVERY_S)
