"""The same cases on both databases: SQLite in a file, and a real PostgreSQL."""

import asyncio
import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from farstep_infra.control.app import make_control_app
from farstep_infra.control.commands import Commands
from farstep_infra.control.control import Control
from farstep_infra.control.db import Database
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.keys import IssuedKeys
from farstep_infra.control.placements import Placements
from farstep_infra.control.projects import Projects
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.residency import Residency
from farstep_infra.control.run_stacks import RunStacks
from farstep_infra.control.runs import Runs
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.served_models import ServedModels
from farstep_infra.control.servers import Site
from farstep_infra.control.sessions import Sessions
from farstep_infra.control.shared_samplers import SharedSamplers
from farstep_infra.control.tables import Base
from farstep_infra.control.trainers import Trainers
from farstep_infra.control.usage import UsageLedger
from farstep_infra.control.uses import Uses
from farstep_infra.gateway.gateway import opened as opened_gateway
from farstep_infra.launchers.base import LaunchFailed, ProcessSpec
from farstep_infra.store.archive import Checkpoints
from farstep_infra.store.checkpoints import CheckpointStore
from farstep_serving.keys import KeyRing
from tests.support.postgres import Cluster, cluster

OWN_KEY = "fsk-installation"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database that nobody has used."""
    if request.param == "sqlite":
        return url_of_file(tmp_path / "control.db")
    return request.getfixturevalue("postgres").database()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "control.db"
    asyncio.run(migrate(url_of_file(path)))
    return path


@pytest.fixture(scope="session")
def migrated_url(postgres: Cluster) -> str:
    url = postgres.database()
    asyncio.run(migrate(url))
    return url


async def migrate(url: str) -> None:
    async with Database(url).opened():
        pass


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database with all tables and nothing in them; quicker than one that is still to be migrated."""
    if request.param == "sqlite":
        return url_of_file(shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "control.db"))
    return request.getfixturevalue("migrated_url")


@pytest.fixture
async def db(empty_url: str) -> AsyncIterator[Database]:
    database = Database(empty_url)
    async with database.opened():
        async with database.transaction() as db:
            for table in reversed(Base.metadata.sorted_tables):
                await db.execute(table.delete())
        yield database


@dataclass
class Here:
    """The control plane's app in this process, on a database of the test's own, with a fleet that starts nothing."""

    app: Starlette
    control: Control
    db: Database
    store: CheckpointStore
    launcher: "NoMachine"
    key: str = OWN_KEY

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """As whoever has `key`."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {self.key}", **headers}
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers) as client:
            return await client.request(method, path, json=body)

    async def call(self, method: str, path: str, body: Any = None, *, status: int | None = None, **headers: str) -> Any:
        """One JSON call that succeeds, unless `status` says otherwise."""
        response = await self.send(method, path, body, **headers)
        assert response.status_code in ((200, 201, 202) if status is None else (status,)), response.text
        return response.json()

    async def as_project(self, project: str) -> "Here":
        """The same for who has a new key of that project."""
        created = await self.call("POST", "/v1/keys", {"project": project})
        return dataclasses.replace(self, key=created["secret"])


class NoMachine:
    """A launcher: starting begins, and ends in vain when the test says so."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def adopt(self, spec: ProcessSpec) -> None:
        return None

    async def start(self, spec: ProcessSpec) -> Any:
        await self.ended.wait()
        raise LaunchFailed("there is no machine")


def parts(db: Database, launcher: NoMachine, store: CheckpointStore, provisioning: Provisioning) -> dict[str, Any]:
    """Of a control plane, those that have to do with processes."""
    commands = Commands(host="127.0.0.1", store="", device="cpu", journals=Path("/nowhere"))
    client = httpx.AsyncClient()
    fleet = Fleet(Site(launcher, commands, {}, client), Placements(db, host="127.0.0.1"), ServedModels("fake/one"))
    uses = Uses(db)
    residency = Residency(fleet, idle_timeout_s=0, max_stacks=0, last_seen=uses.last_seen)
    stacks = RunStacks(db, fleet, residency, provisioning, uses, Trainers(client))
    return {
        "fleet": fleet,
        "runs": Runs(db, fleet, stacks, provisioning),
        "samplers": FreshSamplers(db, fleet, residency, provisioning, store),
        "shared_samplers": SharedSamplers(fleet, residency, provisioning),
    }


@pytest.fixture
def serve() -> Callable[[Database, Path], contextlib.AbstractAsyncContextManager[Here]]:
    return served


@pytest.fixture
async def here(db: Database, tmp_path: Path) -> AsyncIterator[Here]:
    async with served(db, tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def served(db: Database, tmp_path: Path) -> AsyncIterator[Here]:
    provisioning, launcher, store = Provisioning(), NoMachine(), CheckpointStore(tmp_path / "store")
    keys = IssuedKeys(db, KeyRing.of(OWN_KEY))
    app = make_control_app(keys=keys, lifespan=contextlib.nullcontext)
    app.state.control = control = Control(
        base_url="http://here",
        projects=Projects(db),
        sessions=Sessions(db),
        checkpoints=Checkpoints(store, secret="secret"),
        usage=UsageLedger(db),
        is_ending=lambda: provisioning.is_released,
        **parts(db, launcher, store, provisioning),
    )
    async with opened_gateway(control, db, api_key=OWN_KEY) as app.state.gateway:
        yield Here(app, control, db, store, launcher)
    await provisioning.close()
    await control.fleet.close()
