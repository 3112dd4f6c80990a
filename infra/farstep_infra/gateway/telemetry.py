"""What the Tinker SDK tells of itself: accepted, so that it goes on quietly, and not looked at, kept or passed on."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_infra.gateway.bodies import Body, answer, media
from farstep_infra.gateway.failures import PREFIX, ErrorBody
from farstep_proto import paths
from farstep_serving.bodies import read_body
from farstep_serving.descriptions import Media, describe

_MAX_BYTES = 1 << 20


class Accepted(Body):
    status: Literal["accepted"] = "accepted"


@describe(
    "Take what a Tinker client tells of itself, and drop it",
    takes=Media({paths.JSON: {"type": "object"}}),
    gives=media(Accepted),
    error=media(ErrorBody),
)
async def _telemetry(request: Request) -> Response:
    await read_body(request, limit=_MAX_BYTES)
    return answer(Accepted())


ROUTES = [Route(f"{PREFIX}telemetry", _telemetry, methods=["POST"])]
