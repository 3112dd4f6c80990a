"""Programs and faults are drawn from seeds alone, and hold all that the suite is there to show."""

import itertools
from collections import Counter

import pytest

from tests.chaos import programs, schedule
from tests.chaos.programs import Custom, Load, Publish, Reset, Save, Step
from tests.chaos.schedule import FullDisk, Kill, Network, OnFile, OnLine, Pause, RestartDatabase


def row(seed, wave, count=300, **options):
    options = {"with_disk": True, "with_database": True} | options
    return list(itertools.islice(schedule.faults(seed, wave, **options), count))


def test_the_same_seed_gives_the_same():
    assert row(3, 1) == row(3, 1)
    assert row(3, 1) != row(3, 2)
    assert programs.program(5, num_steps=20) == programs.program(5, num_steps=20)


def test_every_fault_befalls_everybody():
    faults = row(1, 0)
    assert {type(fault) for fault in faults} == {Kill, Pause, Network, FullDisk, RestartDatabase}
    kills = [fault for fault in faults if isinstance(fault, Kill)]
    assert {role for kill in kills for role in kill.targets} == {"client", "trainer", "replica", "router", "control"}
    assert any(len(kill.targets) == 2 for kill in kills)
    assert any(len(kill.again) == 2 for kill in kills)
    assert {type(fault.moment) for fault in faults} >= {OnLine, OnFile}


@pytest.mark.parametrize(("option", "kind"), [("with_disk", FullDisk), ("with_database", RestartDatabase)])
def test_what_cannot_be_done_here_is_left_out(option, kind):
    assert not any(isinstance(fault, kind) for fault in row(1, 0, **{option: False}))


def test_programs_call_everything():
    calls = [call for seed in range(6) for call in programs.program(seed, num_steps=60).calls]
    assert {type(call) for call in calls} == set(programs.Call.__args__)
    counts = Counter(type(call) for call in calls)
    assert all(counts[kind] >= 3 for kind in (Custom, Load, Publish, Reset, Save, Step))


def test_a_program_loads_what_fits():
    """Never a checkpoint of before a reset, whose rank may be another."""
    for seed in range(30):
        calls = programs.program(seed, num_steps=60).calls
        for index, call in enumerate(calls):
            if isinstance(call, Load):
                assert isinstance(calls[call.saved], Save)
                assert not any(isinstance(between, Reset) for between in calls[call.saved : index])


def test_versions_are_numbered_without_gaps():
    calls = programs.program(1, num_steps=60).calls
    assert list(programs.versions(calls).values()) == list(range(1, len(programs.versions(calls)) + 1))
