"""Usage, as the Tinker SDK's AdminClient asks for it: what the ledger has, and no prices.

The ledger counts by day (UTC), so an event is of a day, not of an hour, and a day that a window cuts is given whole.
How much of a prompt came from a cache is not counted, nor are checkpoints and storage by the hour. An audit log is not
kept, and not made up.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.control.control import control_of
from farstep_infra.control.usage import DayUsage
from farstep_infra.gateway.bodies import Body, answer, media
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_infra.gateway.records import OPERATORS
from farstep_infra.gateway.run_records import RunRecords
from farstep_infra.gateway.windows import PROJECT, project_of
from farstep_proto.errors import InvalidInput, NotFound
from farstep_serving.descriptions import describe, query
from farstep_serving.keys import caller_of

MAX_WINDOW = timedelta(days=14)
_DAY = timedelta(days=1)
_GIGABYTE = 1e9
_TIME = TypeAdapter(AwareDatetime)
_WHEN = {"type": "string", "format": "date-time"}


class Tokens(Body):
    type: Literal["training", "sampling_sample"]
    token_count: int


class Prefill(Body):
    type: Literal["sampling_prefill"] = "sampling_prefill"
    cached: bool = False
    token_count: int


class UsageEvent(Body):
    bucket_start: datetime
    bucket_end: datetime
    base_model: str | None = None
    session_id: str | None = None
    project_id: str
    event_info: Annotated[Tokens | Prefill, Field(discriminator="type")]


class UsageSession(Body):
    user_metadata: dict[str, str] | None = None


class Usage(Body):
    """Costs are left out: this installation has no prices."""

    data: list[UsageEvent]
    sessions: dict[str, UsageSession]


class StoredBytes(Body):
    project_id: str
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float


class Storage(Body):
    data: list[StoredBytes]


@describe(
    "Tell what was used",
    gives=media(Usage),
    error=media(ErrorBody),
    parameters=[
        query("starting_on", "with the hour that begins then", required=True, **_WHEN),
        query("ending_before", "up to that hour, 14 days later at most", required=True, **_WHEN),
    ],
)
async def _events(request: Request) -> Response:
    starting_on, ending_before = _window_of(request)
    last = (ending_before - timedelta(microseconds=1)).date()
    days = await control_of(request).usage.days(
        caller=caller_of(request), since=starting_on.date().isoformat(), until=last.isoformat()
    )
    events = [event for each in days for event in _events_of(each)]
    sessions = {
        each.session_id: UsageSession(user_metadata=dict(each.user_metadata or {}) or None)
        for each in days
        if each.session_id
    }
    events.sort(key=lambda event: (event.bucket_start, -event.event_info.token_count))
    return answer(Usage(data=events, sessions=sessions))


@describe(
    "Tell how much is stored", gives=media(Storage), error=media(ErrorBody), parameters=[PROJECT], errors=[NotFound]
)
async def _storage(request: Request) -> Response:
    project = project_of(request)
    sizes: dict[str, list[int]] = {}
    for manifest in await RunRecords(control_of(request), caller_of(request)).all_checkpoints():
        owner = manifest.project or OPERATORS
        if project in ("", owner):
            sizes.setdefault(owner, []).append(manifest.size_bytes)
    data = [
        StoredBytes(
            project_id=owner, checkpoint_count=len(its), size_bytes=sum(its), size_gigabytes=sum(its) / _GIGABYTE
        )
        for owner, its in sorted(sizes.items())
    ]
    return answer(Storage(data=data))


def _window_of(request: Request) -> tuple[datetime, datetime]:
    """Raises:
    InvalidInput: naming the parameter.
    """
    starting_on, ending_before = (_hour_of(request, name) for name in ("starting_on", "ending_before"))
    if starting_on > datetime.now(UTC):
        raise InvalidInput("it is in the future", field="starting_on")
    if not timedelta() < ending_before - starting_on <= MAX_WINDOW:
        raise InvalidInput(f"it is not within {MAX_WINDOW.days} days after starting_on", field="ending_before")
    return starting_on, ending_before


def _hour_of(request: Request, name: str) -> datetime:
    try:
        time = _TIME.validate_python(request.query_params.get(name, "")).astimezone(UTC)
    except (ValidationError, OverflowError) as error:
        raise InvalidInput("it is not a time like 2026-07-13T00:00:00Z", field=name) from error
    if (time.minute, time.second, time.microsecond) != (0, 0, 0):
        raise InvalidInput("it is not the beginning of an hour (UTC)", field=name)
    return time


def _events_of(used: DayUsage) -> list[UsageEvent]:
    start = datetime.fromisoformat(used.day).replace(tzinfo=UTC)
    infos: list[Tokens | Prefill] = [
        Tokens(type="training", token_count=used.tokens_forward + used.tokens_trained),
        Prefill(token_count=used.tokens_prompted),
        Tokens(type="sampling_sample", token_count=used.tokens_sampled),
    ]
    return [
        UsageEvent(
            bucket_start=start,
            bucket_end=start + _DAY,
            base_model=used.base_model,
            session_id=used.session_id,
            project_id=used.project,
            event_info=info,
        )
        for info in infos
        if info.token_count
    ]


ROUTES = [
    Route(f"{PREFIX}billing/usage/events", _events, methods=["GET"]),
    Route(f"{PREFIX}billing/usage/checkpoints/current", _storage, methods=["GET"]),
]
