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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx
from starlette.applications import Starlette

from farstep_infra.control.app import make_control_app
from farstep_infra.control.commands import Commands
from farstep_infra.control.control import Control
from farstep_infra.control.db import Database, reason_of
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.health import HealthWatch
from farstep_infra.control.housekeeping import Housekeeping
from farstep_infra.control.keys import IssuedKeys
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
from farstep_infra.control.shared_samplers import SharedSamplers
from farstep_infra.control.stacks import Stack
from farstep_infra.control.trainers import Trainers
from farstep_infra.control.usage import UsageLedger
from farstep_infra.control.usage_collector import UsageCollector
from farstep_infra.control.uses import Uses
from farstep_infra.gateway.gateway import Gateway
from farstep_infra.gateway.gateway import opened as opened_gateway
from farstep_infra.home import Home
from farstep_infra.launchers.base import Launcher, LaunchFailed
from farstep_infra.launchers.local import LocalLauncher, torch_environment
from farstep_infra.launchers.ports import choose_port
from farstep_infra.settings import Settings, settings_of
from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore, open_store
from farstep_proto.errors import ApiError, InvalidInput, Unavailable
from farstep_serving.keys import KeyRing
from farstep_serving.process import announce, bind, exit_with_parent, serve, setup_logging, url_of

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 600.0
TRIM_LOGS_EVERY_S = 30.0


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
        self._gateway: Gateway | None = None
        self.exit_code = 1  # until everything has started

    async def serve(self) -> None:
        """Raises:
        SystemExit: the database cannot be used.
        """
        app = make_control_app(keys=self._keys, lifespan=self._lifespan, asks_for_tokens=self._settings.tinker_jwt)
        try:
            async with self._db.opened():
                await serve(app, self._sock, on_stop=self._release)
        except SchemaRefused as error:
            raise SystemExit(f"the database {self._db} cannot be used: {error}") from error
        except Unavailable as error:
            raise SystemExit(f"the database {self._db} cannot be used: {reason_of(error)}") from error

    def _release(self) -> None:
        """Lets everybody go who waits."""
        self._provisioning.release()
        if self._gateway is not None:
            self._gateway.release()

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
            usage = UsageLedger(db)
            collector = UsageCollector(client, usage, lambda: fleet.workers())
            site = self._site(environment, client, before_stop=collector.collect)
            fleet = Fleet(site, Placements(db, host=self._settings.host), self._settings.served)
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
                shared_samplers=SharedSamplers(fleet, residency, self._provisioning),
                checkpoints=Checkpoints(store, secret=self.api_key),
                usage=usage,
                is_ending=lambda: self._provisioning.is_released,
                custom_losses=self._settings.custom_losses,
            )
            silent_s = self._settings.session_silence_s
            housekeeping = Housekeeping(db, control.sessions, control.samplers, control.usage, silent_s=silent_s)
            await self._restore(control, residency, uses, stacks)
            app.state.control = control
            app.state.gateway = await parts.enter_async_context(opened_gateway(control, db, api_key=self.api_key))
            self._gateway = app.state.gateway
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
        before_stop: Callable[[Sequence[str]], Awaitable[None]],
    ) -> Site:
        settings = self._settings
        commands = Commands(
            host=settings.host,
            store=settings.store,
            device=settings.device,
            journals=settings.journals,
            weight_sync_uri=settings.weight_sync_uri,
            custom_losses=settings.custom_losses,
            front_flags=settings.front_flags,
            names_of=settings.served.names_of,
        )
        return Site(
            LocalLauncher(self._home.logs, host=settings.host), commands, environment, client, before_stop=before_stop
        )

    async def _restore(self, control: Control, residency: Residency, uses: Uses, stacks: RunStacks) -> None:
        """What was there is there again: at once where somebody uses it, else as soon as somebody asks."""
        fleet = control.fleet
        await fleet.restore()
        known = await uses.known_stacks()
        for stack in fleet.stacks:
            if not stack.spec.is_shared and stack.spec.stack_id not in known:
                await fleet.remove(stack)  # whoever it was for came to nothing
        default = await fleet.default(self._settings.served.default, num_trainers=self._settings.trainer_replicas)
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
            log.error("%s cannot be served: %s", self._settings.served.default, error, exc_info=is_ours)
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
