"""The usage ledger: totals that servers report, in whatever way they arrive, count once."""

import asyncio
import random
from datetime import UTC, datetime

import pytest

from farstep_infra.control.usage import COUNTERS, REMEMBERED_S, UsageLedger
from farstep_proto.errors import InvalidInput
from farstep_proto.v1.control_pb2 import Usage

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
DAY_S = 24 * 3600.0


class Clock:
    now = NOON

    def __call__(self):
        return self.now


async def by_run(here, query=""):
    listed = await here.call("GET", f"/v1/usage?by=run{query}")
    return {(row["project"], row.get("run_id", "")): int(row.get("num_samples", 0)) for row in listed.get("usage", [])}


async def test_every_counter_adds_up(here):
    fields = {name: 10 + place for place, name in enumerate(COUNTERS)}
    await here.control.usage.add("a", [Usage(project="p", run_id="r", **fields)])
    await here.control.usage.add("b", [Usage(project="p", run_id="s", **fields)])
    (used,) = (await here.call("GET", "/v1/usage"))["usage"]
    assert {name: float(used[name]) for name in COUNTERS} == {name: 2.0 * value for name, value in fields.items()}
    assert used["project"] == "p"
    assert "run_id" not in used


async def test_a_report_counts_once_however_often_and_late_it_comes(here):
    totals = [3, 5, 5, 9, 20]
    reports = [("first", total) for total in totals] + [("second", total) for total in totals]
    random.Random(5).shuffle(reports)
    for instance_id, total in reports * 2:
        await here.control.usage.add(instance_id, [Usage(project="p", run_id="r", num_samples=total)])
    assert await by_run(here) == {("p", "r"): 40}
    # The server started anew: it counts from nothing, under another name.
    await here.control.usage.add("third", [Usage(project="p", run_id="r", num_samples=2)])
    assert await by_run(here) == {("p", "r"): 42}


async def test_reports_at_once_count_once(here):
    for total in (7, 20):  # of what is new, and of what there is
        totals = [Usage(project="p", run_id=f"r{i}", num_samples=total) for i in range(4)]
        await asyncio.gather(*(here.control.usage.add("a", totals[::step]) for step in (1, -1, 1, -1)))
        assert await by_run(here) == {("p", f"r{i}"): total for i in range(4)}


async def test_one_report_with_a_run_twice_is_its_sum(here):
    twice = [Usage(project="p", run_id="r", num_samples=2), Usage(project="p", run_id="r", num_samples=3)]
    for _ in range(2):
        await here.control.usage.add("a", twice)
    assert await by_run(here) == {("p", "r"): 5}


async def test_who_names_no_project_is_the_default_one(here):
    await here.control.usage.add("a", [Usage(num_samples=2)])
    assert await by_run(here) == {("default", ""): 2}


async def test_days_are_told_apart(here):
    clock = Clock()
    ledger = UsageLedger(here.db, clock=clock)
    for day, total in enumerate((1, 11, 111)):
        clock.now = NOON + day * DAY_S
        await ledger.add("a", [Usage(project="p", run_id="r", num_samples=total)])
    for query, expected in {
        "": 111,
        "&since=2026-03-02": 110,
        "&until=2026-03-02": 11,
        "&since=2026-03-02&until=2026-03-02": 10,
        "&run_id=r": 111,
        "&project=p": 111,
    }.items():
        assert await by_run(here, query) == {("p", "r"): expected}, query
    for query in ("&since=2026-03-04", "&run_id=x", "&project=x"):
        assert await by_run(here, query) == {}, query


async def test_servers_that_are_gone_for_long_are_forgotten_and_others_are_not(here):
    clock = Clock()
    ledger = UsageLedger(here.db, clock=clock)
    for name in ("quiet", "gone"):
        await ledger.add(name, [Usage(project="p", run_id=name, num_samples=4)])
    clock.now = NOON + REMEMBERED_S - 60
    await ledger.add("quiet", [Usage(project="p", run_id="quiet", num_samples=4)])  # nothing new, but it lives
    clock.now = NOON + REMEMBERED_S + 60
    await ledger.forget_ended()
    for name in ("quiet", "gone"):
        await ledger.add(name, [Usage(project="p", run_id=name, num_samples=4)])
    assert await by_run(here) == {("p", "quiet"): 4, ("p", "gone"): 8}


NONSENSE = [
    ("", Usage(num_samples=1), "instance_id"),
    ("a\0b", Usage(num_samples=1), "instance_id"),
    ("a", Usage(project="a\0b", num_samples=1), "usage.project"),
    ("a", Usage(num_samples=-1), "usage.num_samples"),
    ("a", Usage(trainer_seconds=float("nan")), "usage.trainer_seconds"),
    ("a", Usage(sampler_seconds=float("inf")), "usage.sampler_seconds"),
    ("a", Usage(tokens_sampled=(1 << 63) - 1), "usage.tokens_sampled"),
]


async def test_a_report_with_nonsense_in_it_is_refused_whole(here):
    for instance_id, usage, field in NONSENSE:
        with pytest.raises(InvalidInput) as caught:
            await here.control.usage.add(instance_id, [Usage(project="p", num_samples=1), usage])
        assert caught.value.field == field
    assert await by_run(here) == {}


async def test_nonsense_is_refused_by_field(here):
    for query, field in (("since=yesterday", "since"), ("until=2026-02-30", "until"), ("by=day", "by")):
        assert (await here.call("GET", f"/v1/usage?{query}", status=400))["field"] == field
