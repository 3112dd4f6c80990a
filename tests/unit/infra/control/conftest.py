"""The same cases on both databases: SQLite in a file, and a real PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farstep_infra.control.db import Database, url_of_file
from tests.support.postgres import Cluster, cluster


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


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    async with database.opened():
        yield database
