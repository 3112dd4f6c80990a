"""Numbers of a run on both wires: pure rules, and what of them outlives the process."""

import pytest

from farstep_infra.control.db import Database
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.tables import RunRow, SessionRow
from farstep_infra.gateway.seqs import RunLine, RunSeqs, SeqMap


def test_tinkers_number_is_the_one_before_ours():
    assert [SeqMap().ours(seq) for seq in (0, 1, 2, 1000)] == [1, 2, 3, 1001]


def test_others_move_what_follows_and_nothing_else():
    moved = SeqMap().shifted(5, 9).shifted(8, 20)
    assert [moved.ours(seq) for seq in range(10)] == [1, 2, 3, 4, 5, 9, 10, 11, 20, 21]
    assert SeqMap().shifted(5, 9).shifted(5, 12).ours(5) == 12
    again = SeqMap().shifted(8, 12).shifted(5, 9)  # what was to come later comes behind it
    assert [again.ours(seq) for seq in (4, 5, 8, 9)] == [5, 9, 12, 13]


def test_a_trainers_number_is_tinkers_or_anothers():
    moved = SeqMap().shifted(5, 9).shifted(8, 20)
    assert [moved.theirs(moved.ours(seq)) for seq in range(30)] == list(range(30))
    assert [moved.theirs(ours) for ours in (6, 7, 8, 12, 19)] == [None] * 5
    assert moved.theirs(0) is None


def test_a_map_never_goes_back():
    with pytest.raises(AssertionError):
        SeqMap().shifted(5, 6)


def test_a_line_knows_which_are_to_come():
    line = RunLine(SeqMap(), last=0)
    assert not line.comes_early(1)
    assert line.comes_early(3)
    line.note(3)
    assert line.missing == {1, 2}
    assert not line.comes_early(7)  # it was looked at for the first of them
    line.note(1)
    line.note(2)
    assert not line.missing
    assert line.comes_early(5)
    line.note(2)
    assert (line.last, line.missing) == (3, set())


async def test_what_was_shifted_is_known_to_the_next_process(tmp_path):
    database = Database(url_of_file(tmp_path / "control.db"))
    async with database.opened():
        async with database.transaction() as db:
            db.add(SessionRow(session_id="s", project="p", reuse_from_session_id="", user_metadata={}))
            await db.flush()
            run = {"state": "ready", "message": "", "base_model": "m", "request": b""}
            db.add(RunRow(run_id="s:train:0", session_id="s", project="p", **run))
        seqs = RunSeqs(database)
        line = await seqs.of("s:train:0")
        for first_free in (9, 12):
            await seqs.shift("s:train:0", line, 5, first_free)
        await seqs.shift("s:train:0", line, 7, 30)
        assert (await RunSeqs(database).of("s:train:0")).map == line.map
        assert [line.map.ours(seq) for seq in (4, 5, 6, 7)] == [5, 12, 13, 30]


def test_a_line_knows_what_it_has():
    line = RunLine(SeqMap())
    assert not line.has(1)
    line.note(1)
    line.note(4)
    assert [line.has(seq) for seq in range(1, 6)] == [True, False, False, True, False]
    line.take_back(4)  # no server took it
    assert not line.has(4)
    line.note(4)
    assert line.has(4)
