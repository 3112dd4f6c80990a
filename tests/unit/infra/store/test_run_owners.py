"""Whose runs are: said once, kept in the store, and never said anew."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from farstep_infra.store.checkpoints import CheckpointStore
from farstep_infra.store.run_owners import RunOwners
from farstep_proto.errors import Conflict, Internal
from farstep_proto.names import CheckpointPath
from farstep_serving.keys import OPERATOR, Caller

ANNE, BOB = Caller("1", "anne"), Caller("2", "bob")


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "store")


def test_a_run_stays_whose_it_was_first(store):
    assert RunOwners(store).claim("r", "anne", ANNE) == "anne"
    for caller, project in ((ANNE, "anne"), (OPERATOR, "anne"), (OPERATOR, "")):
        assert RunOwners(store).claim("r", project, caller) == "anne"
    with pytest.raises(Conflict) as refused:
        RunOwners(store).claim("r", "bob", BOB)
    assert "anne" not in refused.value.message
    assert refused.value.field == "run_id"
    with pytest.raises(Conflict, match="belongs to project 'anne'"):
        RunOwners(store).claim("r", "bob", OPERATOR)


def test_an_operators_run_is_no_projects(store):
    assert RunOwners(store).claim("r", "", OPERATOR) == ""
    with pytest.raises(Conflict, match="is taken"):
        RunOwners(store).claim("r", "anne", ANNE)
    with pytest.raises(Conflict, match="belongs to the operators"):
        RunOwners(store).claim("r", "anne", OPERATOR)


def test_what_nobody_has_claimed_but_is_there_is_the_operators_to_give(store):
    store.write(CheckpointPath("old", "weights", "one"), {"file": b"1"}, {})
    with pytest.raises(Conflict, match="is taken"):
        RunOwners(store).claim("old", "anne", ANNE)
    assert RunOwners(store).claim("old", "anne", OPERATOR) == "anne"
    assert RunOwners(store).claim("old", "anne", ANNE) == "anne"


def test_of_two_at_once_one_gets_it(store):
    def claim(number):
        caller = Caller("", f"p{number}")
        try:
            return RunOwners(store).claim("r", caller.project, caller)
        except Conflict:
            return None

    with ThreadPoolExecutor(8) as threads:
        won = [answer for answer in threads.map(claim, range(8)) if answer is not None]
    assert len(won) == 1


def test_a_damaged_note_gives_a_run_to_nobody(store, tmp_path):
    RunOwners(store).claim("r", "anne", ANNE)
    (tmp_path / "store" / "owners~" / "r" / "owner.json").write_bytes(b"{")
    with pytest.raises(Internal, match="cannot be read"):
        RunOwners(store).claim("r", "anne", ANNE)
