"""Which sessions a search of the Tinker wire finds: decided on what is known of one, without a database.

Of the states of that wire, ours are two: a session is active while its client gives signs of life, and finished when
its client said so. One that neither holds of has no state, and no question for a state finds it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from farstep_infra.gateway.bodies import Body
from farstep_infra.gateway.records import when
from farstep_proto.v1 import control_pb2

LIVE_S = 120.0  # since the last sign of life; a client gives one every 10 s

Reason = Literal["success", "errored", "interrupted"]
_MAX_TEXT = 4096


class Own(Body):
    type: Literal["own"] = "own"


class Accessible(Body):
    type: Literal["accessible"]


class ByUser(Body):
    type: Literal["user"]
    owner_urns: list[str] = Field(min_length=1, max_length=10)


class ActiveQuery(Body):
    type: Literal["active"]


class CancelledQuery(Body):
    type: Literal["cancelled"]


class FailedQuery(Body):
    type: Literal["failed"]


class FinishedQuery(Body):
    type: Literal["client_finished"]
    reasons: list[Reason] | None = Field(default=None, min_length=1)


Owner = Annotated[Own | Accessible | ByUser, Field(discriminator="type")]
StatusQuery = Annotated[ActiveQuery | CancelledQuery | FailedQuery | FinishedQuery, Field(discriminator="type")]


class Place(Body):
    """Where the next page begins."""

    last_created_at: AwareDatetime
    last_session_id: str = Field(max_length=_MAX_TEXT)


class Search(Body):
    """Of `session_id` and `display_name` one is enough; everything else that is said must hold."""

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = Field(default=None, min_length=1)
    owner: Owner = Own()
    statuses: list[StatusQuery] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: Place | None = None


class FinishReason(Body):
    type: Reason


class Status(Body):
    type: Literal["active", "client_finished"]
    reason: FinishReason | None = None
    detail: str | None = None


class SessionSummary(Body):
    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: Status | None = None
    checkpoints_count: int
    display_name: str | None = None
    user_metadata: dict[str, str] | None = None
    checkpoint_storage_bytes: int | None = None


def owner_of(session: control_pb2.Session) -> str:
    """Within a project everybody is alike."""
    return f"farstep:project:{session.project}"


def status_of(session: control_pb2.Session, *, now: float) -> Status | None:
    match session.outcome:
        case "success" | "errored" | "interrupted" as outcome:
            reason = FinishReason(type=outcome)
            return Status(type="client_finished", reason=reason, detail=session.outcome_detail or None)
    is_live = not session.HasField("closed_at") and session.last_seen_at > now - LIVE_S
    return Status(type="active") if is_live else None


def matches(session: control_pb2.Session, search: Search, *, now: float) -> bool:
    return (
        (search.project_ids is None or session.project in search.project_ids)
        and all(session.user_metadata.get(key) == value for key, value in search.user_metadata.items())
        and _is_named(session, search)
        and (not isinstance(search.owner, ByUser) or owner_of(session) in search.owner.owner_urns)
        and (search.statuses is None or any(_is_in(session, each, now=now) for each in search.statuses))
    )


def summary(session: control_pb2.Session, *, now: float, num_checkpoints: int, num_bytes: int) -> SessionSummary:
    return SessionSummary(
        session_id=session.session_id,
        created_at=when(session.created_at),
        owner=owner_of(session),
        project_id=session.project,
        status=status_of(session, now=now),
        checkpoints_count=num_checkpoints,
        display_name=session.display_name or None,
        user_metadata=dict(session.user_metadata) or None,
        checkpoint_storage_bytes=num_bytes,
    )


def _is_named(session: control_pb2.Session, search: Search) -> bool:
    if search.session_id is None and search.display_name is None:
        return True
    if search.session_id == session.session_id:
        return True
    name = session.display_name.casefold()
    return search.display_name is not None and all(word in name for word in search.display_name.casefold().split())


def _is_in(session: control_pb2.Session, query: StatusQuery, *, now: float) -> bool:
    status = status_of(session, now=now)
    match query:
        case ActiveQuery():
            return status is not None and status.type == "active"
        case FinishedQuery(reasons=reasons):
            reason = status.reason if status is not None else None
            return reason is not None and (reasons is None or reason.type in reasons)
        case _:
            return False
