"""A job that goes on with newer weights: which versions it is moved to, and what stays resident meanwhile."""

import asyncio

import pytest

from farstep_sampler.follow import follow
from farstep_sampler.gate import Gate
from farstep_sampler.request import Target
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import BASE, AtLeast, PolicyId

RUN = Target("r", AtLeast(0), 60.0)


class Job:
    """Stands for a job on an engine; remembers what it was switched to, and what was pinned then."""

    def __init__(self, table: VersionTable) -> None:
        self.done = asyncio.Event()
        self.switches: list[int] = []
        self.pinned: list[set[int]] = []
        self._table = table

    async def wait(self) -> None:
        await self.done.wait()

    async def switch(self, *, slot: int, version: int) -> None:
        self.pinned.append({p.version for p, entry in self._table._entries.items() if entry.num_pins})
        self.switches.append(version)


def serve(table: VersionTable, gate: Gate, policy: PolicyId) -> PolicyId:
    table.announce(policy)
    assert table.next_load() is not None
    table.mark_ready(policy)
    gate.notify()
    return policy


@pytest.mark.parametrize("begins_with_base", [False, True])
async def test_it_moves_to_each_newer_version_of_its_run_and_holds_both_meanwhile(begins_with_base: bool) -> None:
    table = VersionTable(num_slots=4)
    gate, job = Gate(table), Job(table)
    first = BASE if begins_with_base else serve(table, gate, PolicyId("r", 1, "h"))
    with gate.pinned(first) as pin:
        following = asyncio.create_task(follow(job, pin, target=RUN, table=table, gate=gate))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        serve(table, gate, PolicyId("s", 9, "h"))
        await asyncio.sleep(0.01)
        assert job.switches == []
        newest = serve(table, gate, PolicyId("r", 2, "h"))
        await asyncio.sleep(0.01)
        assert job.switches == [2]
        assert job.pinned == [{2} if begins_with_base else {1, 2}]
        assert pin.policy == newest
        job.done.set()
        await following
    assert all(entry.num_pins == 0 for entry in table._entries.values())


async def test_it_does_not_leave_the_history_that_it_began_in() -> None:
    table = VersionTable(num_slots=4)
    gate, job = Gate(table), Job(table)
    with gate.pinned(serve(table, gate, PolicyId("r", 1, "old"))) as pin:
        following = asyncio.create_task(follow(job, pin, target=RUN, table=table, gate=gate))  # type: ignore[arg-type]
        serve(table, gate, PolicyId("r", 2, "new"))
        await asyncio.sleep(0.01)
        job.done.set()
        await following
    assert job.switches == []
