"""The fleet in this process, with fake servers as real processes: kept alive, watched, at rest and back."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import psutil
import pytest

from farstep_infra.control.commands import Commands
from farstep_infra.control.db import Database
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.fleet import Fleet
from farstep_infra.control.health import HealthWatch, Silence
from farstep_infra.control.machine import Machine
from farstep_infra.control.placements import Placements
from farstep_infra.control.residency import Residency
from farstep_infra.control.served_models import ServedModels
from farstep_infra.control.servers import Site
from farstep_infra.launchers.base import LaunchFailed
from farstep_infra.launchers.local import LocalLauncher
from farstep_infra.launchers.restarts import RestartPolicy
from farstep_proto.errors import InvalidInput, TooManyRequests
from tests.unit.infra.conftest import fake_environment

KEY = "fsk-test"
HOST = "127.0.0.1"
POLICY = RestartPolicy(first_s=0.05, most_s=0.1, well_s=60.0, max_quick_deaths=3)


@asynccontextmanager
async def fleet_in(tmp_path, *, policy=POLICY) -> AsyncIterator[Fleet]:
    """A fleet, with what an earlier one in the same directory left behind."""
    environment = fake_environment(FARSTEP_API_KEY=KEY, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    headers = {"Authorization": f"Bearer {KEY}", "Accept": "application/x-protobuf"}
    commands = Commands(host=HOST, store=str(tmp_path), device="cpu", journals=tmp_path / "journals")
    db = Database(url_of_file(tmp_path / "control.db"))
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client, db.opened():
        site = Site(LocalLauncher(tmp_path / "logs", host=HOST), commands, environment, client, policy)
        fleet = Fleet(site, Placements(db, host=HOST), ServedModels("fake/one"))
        await fleet.restore()
        try:
            yield fleet
        finally:
            await fleet.close()


async def until(true, *, within_s=30):
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - what happens in another process sets no event here
            await asyncio.sleep(0.02)


def get(url, path):
    return httpx.get(url + path, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)


def facts(stack):
    return {server.place.name: (server.url, server.place.feed_port) for server in stack.servers}


async def test_a_stack_is_the_same_under_another_control_plane(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        stack = await fleet.shared("fake/one")
        await stack.come_up(num_samplers=2)
        before = facts(stack)
        assert set(before) == {"trainer-1", "router-1", "sampler-1", "sampler-2"}
        own = await fleet.own("fake/one", num_trainers=2)
        await own.come_up()
        assert get(own.trainer.url, "/asked").json()["nproc"] == "2"
    async with fleet_in(tmp_path) as fleet:
        again = fleet.find(stack.spec.stack_id)
        assert (again.condition, again.is_loaded) == ("inactive", False)
        assert fleet.find_shared("fake/one") is again
        await again.come_up()
        assert facts(again) == before
        assert fleet.find(own.spec.stack_id).spec == own.spec
        await fleet.remove(fleet.find(own.spec.stack_id))
        assert fleet.find(own.spec.stack_id) is None


async def test_a_crash_loop_is_given_up_with_an_epitaph_and_tried_again_when_asked(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        stack = await fleet.shared("fake/cursed")
        await stack.come_up()
        before = facts(stack)
        (tmp_path / "cursed").touch()
        os.kill(stack.trainer.process.pid, signal.SIGKILL)
        await until(lambda: stack.condition == "failed")
        assert "a curse lies on it" in stack.troubles()[0]
        with pytest.raises(LaunchFailed, match="a curse lies on it"):
            await stack.come_up()
        (tmp_path / "cursed").unlink()
        await stack.come_up()
        assert facts(stack) == before
        assert stack.troubles() == []


async def test_what_does_not_answer_is_killed_and_comes_back_and_what_does_is_left_alone(tmp_path):
    async with fleet_in(tmp_path) as fleet, httpx.AsyncClient(trust_env=False) as client:
        stack = await fleet.shared("fake/one")
        await stack.come_up(num_samplers=1)
        trainer, (sampler,) = stack.trainer, stack.replicas
        hung, well = trainer.process.pid, sampler.process.pid
        watch = asyncio.create_task(
            HealthWatch(fleet, client, patience_s=0.5, every_s=0.05, answer_s=0.3).run(), name="health"
        )
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: trainer.process.is_running and trainer.process.pid != hung)
        watch.cancel()
        assert "it gave no answer" in trainer.process.last_words
        assert not psutil.pid_exists(hung)
        assert sampler.process.pid == well


def test_patience_is_longer_where_nobody_answers():
    silence = Silence(1, 60.0, "it gave no answer")
    assert silence.is_too_long(others_answer=True, patience_s=60.0)
    assert not silence.is_too_long(others_answer=False, patience_s=60.0)
    assert Silence(1, 180.0, "").is_too_long(others_answer=False, patience_s=60.0)


class Seen:
    """Whose sessions live, and what became of stacks."""

    def __init__(self):
        self.at = 0.0
        self.told = []

    async def last(self, stack_id):
        return self.at

    async def rested(self, stack):
        self.told.append("rested")

    async def woken(self, stack):
        self.told.append("woken")


def residency_of(fleet, seen, *, idle_timeout_s=0.3, max_stacks=0):
    residency = Residency(fleet, idle_timeout_s=idle_timeout_s, max_stacks=max_stacks, last_seen=seen.last)
    residency.on_rested, residency.on_woken = seen.rested, seen.woken
    return residency


async def test_a_stack_rests_when_nobody_uses_it_and_never_while_it_has_work(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        seen = Seen()
        residency = residency_of(fleet, seen)
        stack = await fleet.shared("fake/one")
        await residency.wake(stack, num_samplers=1)
        before, pids = facts(stack), [server.process.pid for server in stack.servers]
        get(stack.trainer.url, "/work?n=1")
        stack.touched_at -= 100
        assert not await residency.rest(stack, unused_s=0.0), "it has work to do"
        get(stack.trainer.url, "/work?n=0")
        assert not await residency.rest(stack, unused_s=50.0), "it has just been used"
        await asyncio.sleep(0.4)
        seen.at = time.time() + 60
        assert not await residency.rest(stack, unused_s=0.3), "a session lives"
        seen.at = 0.0
        stack.is_pinned = True
        assert not await residency.rest(stack, unused_s=0.3)
        stack.is_pinned = False
        resting = asyncio.create_task(residency.run())
        await until(lambda: stack.condition == "inactive")
        await until(lambda: seen.told == ["woken", "rested"])
        resting.cancel()
        assert not any(psutil.pid_exists(pid) for pid in pids)
        await residency.wake(stack)
        assert facts(stack) == before
        assert stack.is_up
        assert seen.told == ["woken", "rested", "woken"]


async def test_who_wakes_a_stack_that_goes_down_gets_it_up(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        residency = residency_of(fleet, Seen())
        stack = await fleet.shared("fake/one")
        await residency.wake(stack)
        stack.touched_at -= 100
        await asyncio.sleep(0.2)
        down = asyncio.create_task(residency.rest(stack, unused_s=0.1))
        await until(lambda: stack.lock.locked())
        await asyncio.gather(residency.wake(stack), residency.wake(stack))
        await down
        assert stack.is_up
        assert get(stack.trainer.url, "/health").status_code == 200


async def test_the_least_used_stack_gives_way_and_one_that_is_used_does_not(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        seen = Seen()
        residency = residency_of(fleet, seen, max_stacks=2)
        stacks = [await fleet.shared(f"fake/{name}") for name in ("a", "b", "c")]
        for stack in stacks[:2]:
            await residency.wake(stack)
            get(stack.trainer.url, "/work?n=1")
        with pytest.raises(TooManyRequests, match="2 base models are loaded"):
            await residency.wake(stacks[2])
        with pytest.raises(TooManyRequests):
            await residency.check_room()
        await residency.check_room(stacks[0])  # which is loaded
        get(stacks[0].trainer.url, "/work?n=0")
        await asyncio.sleep(0.4)
        await residency.wake(stacks[2])
        assert [stack.condition for stack in stacks] == ["inactive", "ready", "ready"]


async def test_what_fails_at_its_first_start_leaves_nothing_and_a_grown_stack_goes_on(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        stack = await fleet.shared("fake/cursed")
        (tmp_path / "cursed").touch()
        with pytest.raises(LaunchFailed, match="a curse lies on it"):
            await stack.come_up(num_samplers=1)
        assert list(stack.servers) == []
        (tmp_path / "cursed").unlink()
        await stack.come_up(num_samplers=1)
        url = stack.sampler_url
        (tmp_path / "cursed").touch()
        with pytest.raises(LaunchFailed):
            await stack.come_up(num_samplers=3)
        assert stack.is_up
        assert (stack.sampler_url, len(stack.replicas), stack.router) == (url, 1, None)


async def test_cancelled_at_its_first_start_it_leaves_nothing(tmp_path):
    async with fleet_in(tmp_path) as fleet:
        stack = await fleet.own("fake/hangs", num_trainers=0)
        coming = asyncio.create_task(stack.come_up(num_samplers=2))
        await until(lambda: len(fleet.processes()) == 3 and all(fact.pid for fact in fleet.processes()))
        pids = [fact.pid for fact in fleet.processes()]
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming
        assert fleet.processes() == []
        assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(
    ("machine", "device", "count", "allowed"),
    [
        (Machine(4, 0), "auto", 4, True),
        (Machine(4, 0), "auto", 5, False),
        (Machine(64, 2), "auto", 2, True),
        (Machine(64, 2), "auto", 3, False),
        (Machine(64, 2), "cpu", 3, True),
        (Machine(64, 2), "cuda", 3, False),
        (Machine(64, 2), "cuda:1", 2, False),
        (Machine(1, 0), "auto", 1, True),
        (Machine(1, 0), "auto", 0, True),
    ],
)
def test_as_many_train_together_as_there_are_processors(machine, device, count, allowed):
    if allowed:
        machine.check_trainer_replicas(count, device=device)
        return
    with pytest.raises(InvalidInput) as caught:
        machine.check_trainer_replicas(count, device=device)
    assert caught.value.field == "replicas"


def test_gpus_that_are_hidden_do_not_count(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert Machine.here({}, tmp_path).num_gpus == 2
    assert Machine.here({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path).num_gpus == 1
    assert Machine.here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path).num_gpus == 0
