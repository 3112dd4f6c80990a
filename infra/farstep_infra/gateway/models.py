"""Models of the Tinker wire: a model is a run, and its id is the run's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from farstep_infra.control.control import Control
from farstep_infra.control.db import Database
from farstep_infra.gateway.channels import Channels
from farstep_infra.gateway.refusals import Refusals
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Result
from farstep_infra.gateway.whereabouts import Whereabouts
from farstep_proto.errors import NotFound
from farstep_serving.keys import Caller

if TYPE_CHECKING:
    from farstep_infra.gateway.gateway import Gateway

ROUTES: list[Route] = []


class Models:
    def __init__(
        self, control: Control, db: Database, channels: Channels, whereabouts: Whereabouts, refusals: Refusals
    ) -> None:
        self._control = control


async def result_of(gateway: Gateway, wanted: RequestId, *, caller: Caller, wait_s: float) -> Result:
    """What has become of the creation of a model."""
    raise NotFound(f"no request {wanted}", field="request_id")
