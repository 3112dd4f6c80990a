"""Which sessions a search finds, decided without a database."""

import pytest

from farstep_infra.gateway.session_search import LIVE_S, Search, matches, status_of
from farstep_proto.v1 import control_pb2

NOW = 1_800_000_000.0


def session(**fields):
    given = {"session_id": "session-1", "project": "lab", "created_at": NOW - 500, "last_seen_at": NOW}
    return control_pb2.Session(**{**given, **fields})


def found(one, **search):
    return matches(one, Search.model_validate(search), now=NOW)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "active"),
        ({"last_seen_at": NOW - LIVE_S - 1}, None),
        ({"closed_at": NOW}, None),
        ({"closed_at": NOW, "outcome": "errored", "outcome_detail": "out of luck"}, "client_finished"),
    ],
)
def test_a_session_is_active_or_finished_or_neither(fields, status):
    told = status_of(session(**fields), now=NOW)
    assert (told and told.type) == status
    if status == "client_finished":
        assert (told.reason.type, told.detail) == ("errored", "out of luck")


def test_every_status_asked_for_is_enough():
    both = [{"type": "active"}, {"type": "client_finished", "reasons": ["errored"]}]
    assert found(session(), statuses=both)
    assert found(session(closed_at=NOW, outcome="errored"), statuses=both)
    assert not found(session(closed_at=NOW, outcome="success"), statuses=both)
    assert found(session(closed_at=NOW, outcome="success"), statuses=[{"type": "client_finished"}])
    for never in ("cancelled", "failed"):
        assert not found(session(), statuses=[{"type": never}])


def test_a_name_is_enough_where_the_id_is_another():
    one = session(display_name="Straße nach Rom")
    assert found(one, session_id="session-2", display_name="STRASSE rom")
    assert found(one, session_id="session-1", display_name="Paris")
    assert not found(one, session_id="session-2")
    assert not found(one, display_name="rom paris")
    assert not found(session(), display_name="x")


def test_all_metadata_must_hold():
    one = session(user_metadata={"a": "1", "b": "2"})
    assert found(one, user_metadata={"a": "1", "b": "2"})
    assert not found(one, user_metadata={"a": "1", "c": ""})
    assert not found(one, user_metadata={"a": "2"})


def test_projects_and_owners_narrow():
    assert found(session(), project_ids=["other", "lab"], owner={"type": "own"})
    assert not found(session(), project_ids=["other"])
    assert found(session(), owner={"type": "user", "owner_urns": ["farstep:project:lab"]})
    assert not found(session(), owner={"type": "user", "owner_urns": ["farstep:project:labs"]})
