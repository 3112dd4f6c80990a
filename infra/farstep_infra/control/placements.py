"""What is remembered of the fleet: which stacks there are, and where each of their servers is.

Invariant: a server's place is on the disk before anything is started there, and as long as anybody may know its
address.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from farstep_infra.control.commands import Role
from farstep_infra.control.db import Database
from farstep_infra.control.servers import Place
from farstep_infra.control.stacks import StackSpec
from farstep_infra.control.tables import ServerRow, StackRow
from farstep_infra.launchers.ports import choose_port


class Placements:
    """Args:
    host: the address that servers listen on.
    """

    def __init__(self, db: Database, *, host: str) -> None:
        self._db = db
        self._host = host
        self._last_numbers: Counter[str] = Counter()  # by role: no name is given twice, also where nothing came of it
        self._choosing = asyncio.Lock()  # a name and a port are another's until they are remembered

    async def load(self) -> list[tuple[StackSpec, list[Place]]]:
        """Oldest first."""
        async with self._db.transaction() as db:
            stacks = (await db.execute(select(StackRow).order_by(StackRow.created_at))).scalars().all()
            servers = (await db.execute(select(ServerRow).order_by(ServerRow.number))).scalars().all()
        places = defaultdict(list)
        for row in servers:
            places[row.stack_id].append(_place(row))
        return [(_spec(row), places[row.stack_id]) for row in stacks]

    async def add_stack(self, spec: StackSpec) -> None:
        facts = asdict(spec)
        await self._db.insist(lambda db: db.execute(insert(StackRow).values(**facts, created_at=time.time())))

    async def change_stack(self, spec: StackSpec) -> None:
        this = update(StackRow).where(StackRow.stack_id == spec.stack_id)
        await self._db.insist(lambda db: db.execute(this.values(num_trainers=spec.num_trainers)))

    async def remove_stack(self, stack_id: str) -> None:
        async def write(db: AsyncSession) -> None:
            await db.execute(delete(ServerRow).where(ServerRow.stack_id == stack_id))
            await db.execute(delete(StackRow).where(StackRow.stack_id == stack_id))

        await self._db.insist(write)

    async def add(self, stack_id: str, roles: Sequence[Role]) -> list[Place]:
        """New places: the next names, and ports that nobody has now and no other place of ours ever."""

        async def write(db: AsyncSession) -> list[Place]:
            known = (await db.execute(select(ServerRow))).scalars().all()
            for row in known:
                self._last_numbers[row.role] = max(self._last_numbers[row.role], row.number)
            taken = {port for row in known for port in (row.port, row.feed_port)}
            rows = [self._row(stack_id, role, taken) for role in roles]
            db.add_all(rows)
            return [_place(row) for row in rows]

        async with self._choosing:
            return await self._db.insist(write)

    async def remove(self, names: Sequence[str]) -> None:
        async def write(db: AsyncSession) -> None:
            for name in names:
                role, _, number = name.rpartition("-")
                await db.execute(delete(ServerRow).where(ServerRow.role == role, ServerRow.number == int(number)))

        await self._db.insist(write)

    def _row(self, stack_id: str, role: Role, taken: set[int]) -> ServerRow:
        self._last_numbers[role] += 1
        feed_port = self._port(taken) if role == "trainer" else 0
        number = self._last_numbers[role]
        return ServerRow(role=role, number=number, stack_id=stack_id, port=self._port(taken), feed_port=feed_port)

    def _port(self, taken: set[int]) -> int:
        port = choose_port(self._host, taken=taken)
        taken.add(port)
        return port


def _place(row: ServerRow) -> Place:
    return Place(f"{row.role}-{row.number}", cast(Role, row.role), row.port, row.feed_port)


def _spec(row: StackRow) -> StackSpec:
    return StackSpec(row.stack_id, row.base_model, row.model_path, row.num_trainers, row.is_shared)
