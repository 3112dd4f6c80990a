"""Keys that another server knows: what is asked, what is remembered, and what holds while nobody answers."""

import asyncio

import pytest

from farstep_proto.errors import Unauthenticated, Unavailable
from farstep_serving.keys import OPERATOR, Caller, KeyRing
from farstep_serving.remote_keys import (
    BAD_S,
    GOOD_S,
    MOST_ASKING,
    MOST_KNOWN,
    PAUSE_S,
    STALE_S,
    ControlAddress,
    RemoteKeys,
    all_keys,
)
from tests.support.key_checks import answering_key_checks

OWN = "fsk-own"
ANNE = Caller("key-1", "anne")


class Control:
    """A control plane and a clock, both in the test's hands."""

    def __init__(self):
        self.now = 1000.0
        self.owners = {}
        self.asked = []
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.keys = RemoteKeys(KeyRing.of(OWN), self.ask, clock=lambda: self.now)

    async def ask(self, digest):
        self.asked.append(digest)
        await self.gate.wait()
        if self.is_away:
            raise Unavailable("nobody there", retry_after_s=1.0)
        return self.owners.get(digest)

    def give(self, key, caller=ANNE):
        self.owners[digest(key)] = caller

    async def identify(self, key):
        return await self.keys.identify(f"Bearer {key}")


def digest(key):
    return KeyRing.of(key).digests[0]


@pytest.fixture
async def control():
    control = Control()
    control.give("fsk-anne")
    return control


async def test_ones_own_key_is_an_operators_and_nobody_is_asked(control):
    assert await control.identify(OWN) == OPERATOR
    assert control.asked == []


@pytest.mark.parametrize("header", ["", "Bearer ", "Basic fsk-anne", "fsk-anne"])
async def test_what_is_no_key_is_not_asked_about(control, header):
    with pytest.raises(Unauthenticated):
        await control.keys.identify(header)
    assert control.asked == []


async def test_an_answer_holds_for_seconds_and_is_then_asked_again(control):
    for _ in range(3):
        assert await control.identify("fsk-anne") == ANNE
    assert control.asked == [digest("fsk-anne")]
    control.owners.clear()
    control.now += GOOD_S - 0.1
    assert await control.identify("fsk-anne") == ANNE
    control.now += 0.2
    with pytest.raises(Unauthenticated):
        await control.identify("fsk-anne")
    assert len(control.asked) == 2


async def test_a_revoked_key_does_not_come_back_while_nobody_answers(control):
    await control.identify("fsk-anne")
    control.owners.clear()
    control.now += GOOD_S
    with pytest.raises(Unauthenticated):
        await control.identify("fsk-anne")
    control.is_away = True
    control.now += BAD_S
    with pytest.raises(Unavailable):
        await control.identify("fsk-anne")


async def test_a_wrong_key_is_asked_about_now_and_then(control):
    for _ in range(100):
        with pytest.raises(Unauthenticated):
            await control.identify("fsk-wrong")
    assert len(control.asked) == 1
    control.give("fsk-wrong")
    control.now += BAD_S
    assert await control.identify("fsk-wrong") == ANNE


async def test_many_who_ask_at_once_are_one_question(control):
    control.gate.clear()
    waiting = [asyncio.create_task(control.identify("fsk-anne")) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    control.gate.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [ANNE] * 19
    assert len(control.asked) == 1


async def test_a_flood_of_wrong_keys_is_bounded_in_questions_and_memory(control):
    assert await control.identify("fsk-anne") == ANNE
    control.now += GOOD_S
    control.gate.clear()
    flood = [asyncio.create_task(control.identify(f"fsk-{number}")) for number in range(50)]
    known = asyncio.create_task(control.identify("fsk-anne"))
    await asyncio.sleep(0.01)
    assert len(control.asked) == 1 + MOST_ASKING + 1  # a key that was good is not in their line
    control.gate.set()
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert await known == ANNE
    kinds = [type(answer) for answer in answers]
    assert kinds.count(Unauthenticated) == MOST_ASKING
    assert kinds.count(Unavailable) == 50 - MOST_ASKING
    for number in range(MOST_KNOWN + 10):
        with pytest.raises(Unauthenticated):
            await control.identify(f"fsk-more-{number}")
    assert len(control.keys._bad) == MOST_KNOWN


async def test_while_nobody_answers_what_was_good_stays_good_for_an_hour(control):
    await control.identify("fsk-anne")
    control.is_away = True
    control.now += STALE_S - 1
    assert await control.identify("fsk-anne") == ANNE
    assert len(control.asked) == 2
    assert await control.identify("fsk-anne") == ANNE  # and is not asked about at every request
    assert len(control.asked) == 2
    with pytest.raises(Unavailable) as unknown:
        await control.identify("fsk-new")
    assert unknown.value.status == 503
    assert unknown.value.retry_after_s == PAUSE_S
    assert len(control.asked) == 2
    control.now += 2
    with pytest.raises(Unavailable):
        await control.identify("fsk-anne")


async def test_nobody_known_waits_for_a_control_plane_that_hangs(control):
    await control.identify("fsk-anne")
    control.is_away = True
    control.now += GOOD_S
    await control.identify("fsk-anne")
    control.now += PAUSE_S
    control.gate.clear()  # the next question gets no answer at all
    assert await asyncio.wait_for(control.identify("fsk-anne"), 5) == ANNE
    await asyncio.sleep(0)
    assert len(control.asked) == 3
    control.is_away = False
    control.owners.clear()
    control.gate.set()
    await asyncio.sleep(0.01)
    with pytest.raises(Unauthenticated):
        await control.identify("fsk-anne")


async def test_over_http(caplog):
    with answering_key_checks(OWN) as checks:
        checks.give("fsk-anne", project="anne")
        checks.give("fsk-root", operator=True)
        address = ControlAddress.of({"FARSTEP_CONTROL_URL": checks.url, "FARSTEP_API_KEY": OWN})
        assert OWN not in repr(address)
        async with all_keys(KeyRing.of(OWN), address) as keys:
            assert await keys.identify("Bearer fsk-anne") == Caller("id-anne", "anne")
            assert (await keys.identify("Bearer fsk-root")).is_operator
            with pytest.raises(Unauthenticated):
                await keys.identify("Bearer fsk-nobody")
            checks.silent = True
            with pytest.raises(Unavailable):
                await keys.identify("Bearer fsk-other")
    assert "fsk-" not in caplog.text


async def test_without_a_control_plane_or_a_key_nobody_is_asked():
    assert ControlAddress.of({"FARSTEP_API_KEY": OWN}) is None
    assert ControlAddress.of({"FARSTEP_CONTROL_URL": "http://127.0.0.1:1"}) is None
    async with all_keys(KeyRing.of(), None) as keys:
        assert await keys.identify("") == OPERATOR
