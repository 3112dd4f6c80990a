"""A seeded part of `make fuzz`: what nobody should send, to real servers, and the same numbers before and after."""

import asyncio

import pytest

from tests.fuzz.by_schema import attack_by_schema
from tests.fuzz.campaign import Target, attack
from tests.fuzz.feed import attack_feed
from tests.fuzz.probe import numbers_of
from tests.fuzz.targets import IDS, control_plane
from tests.support.processes import KEY
from tests.unit.infra.conftest import start_up

pytestmark = pytest.mark.timeout(400)  # of a busy machine; alone, each takes some seconds


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    running = start_up(tmp_path_factory.mktemp("home"), "--model=fake/one")
    yield control_plane(running)
    running.stop()


def check(target: Target, *, num_requests: int) -> None:
    report = asyncio.run(attack(target, num_requests=num_requests, seed=3, warm_up=60))
    assert report.findings.complaints == []
    assert report.findings.dropped == []
    assert report.findings.server_errors == 0
    assert report.after.num_fds <= report.before.num_fds + 12


@pytest.mark.parametrize(("which", "name"), [(0, "trainer"), (1, "sampler")])
def test_messages_that_are_nearly_right(pair, which, name, monkeypatch):
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    before = numbers_of(pair[0].url, pair[1].url)
    server = pair[which]
    check(Target(name, server.url, server.process.pid, KEY, IDS), num_requests=480)
    assert numbers_of(pair[0].url, pair[1].url) == before


def test_messages_that_are_nearly_right_to_a_control_plane(control):
    check(control, num_requests=360)


@pytest.mark.parametrize(("which", "name"), [(0, "trainer"), (1, "sampler")])
def test_what_schemathesis_makes_of_the_document(pair, which, name):
    server = pair[which]
    sent, failures = attack_by_schema(Target(name, server.url, server.process.pid, KEY, IDS), examples=3, number=3)
    assert failures == [], "\n".join(failures)
    assert sent > 20


def test_what_schemathesis_makes_of_a_control_planes_document(control):
    sent, failures = attack_by_schema(control, examples=3, number=3)
    assert failures == [], "\n".join(failures)
    assert sent > 20


def test_the_feed(pair):
    ends, complaints = asyncio.run(attack_feed(pair[0].facts["feed"], key=KEY, num_calls=80, seed=3))
    assert complaints == []
    assert {"NOT_FOUND", "UNAUTHENTICATED", "CANCELLED"} <= set(ends)
