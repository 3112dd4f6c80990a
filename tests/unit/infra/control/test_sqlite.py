"""SQLite under users that are cancelled: everything ends, and nothing answers a loop that is gone."""

import asyncio
import random
import shutil
from contextlib import suppress

import pytest
from sqlalchemy import select

from farstep_infra.control.db import Database
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.sqlite import Connections
from farstep_infra.control.tables import SessionRow


@pytest.mark.parametrize("times", [1, 2])
async def test_closing_after_a_stop_ends(tmp_path, times):
    connections = Connections()
    connection = await connections.connect(str(tmp_path / "x.db"))
    for _ in range(times):
        connection.stop()
    with suppress(ValueError):  # that it is closed, where its thread has not got round to that yet
        await asyncio.wait_for(connection.close(), 10)
    await asyncio.wait_for(connections.closed(), 10)


async def read_and_write(database: Database) -> None:
    while True:
        for session in database.transaction, database.reading:
            async with session() as db:
                await db.execute(select(SessionRow))


async def cancelled(database: Database, chance: random.Random) -> None:
    async with database.opened():
        users = [asyncio.create_task(read_and_write(database)) for _ in range(3)]
        await asyncio.sleep(chance.random() * 0.02)
        for _ in range(chance.randint(1, 3)):
            for user in users:
                user.cancel()
            await asyncio.sleep(0)
        await asyncio.wait(users)


@pytest.mark.timeout(60)
def test_a_loop_ends_whenever_its_transactions_are_cancelled(tmp_path, migrated_file):
    for seed in range(30):
        path = shutil.copy(migrated_file, tmp_path / f"{seed}.db")
        asyncio.run(cancelled(Database(url_of_file(path)), random.Random(seed)))
