"""Samples over the Tinker wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Result
from farstep_proto.errors import NotFound
from farstep_serving.keys import Caller

if TYPE_CHECKING:
    from farstep_infra.gateway.gateway import Gateway

ROUTES: list[Route] = []


async def result_of(gateway: Gateway, wanted: RequestId, *, caller: Caller, wait_s: float) -> Result:
    """What has become of a sample."""
    raise NotFound(f"no request {wanted}", field="request_id")


async def cancel(gateway: Gateway, wanted: RequestId, *, caller: Caller) -> bool:
    """Gives a sample up; whether it had not ended."""
    raise NotFound(f"no request {wanted}", field="request_id")
