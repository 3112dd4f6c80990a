"""What a request to the gateway can reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from farstep_infra.control.control import Control
from farstep_infra.control.db import Database
from farstep_infra.gateway.channels import Channels
from farstep_infra.gateway.models import Models
from farstep_infra.gateway.refusals import Refusals
from farstep_infra.gateway.sampling_sessions import SamplingSessions
from farstep_infra.gateway.seqs import RunSeqs
from farstep_infra.gateway.whereabouts import Whereabouts


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that the gateway's requests share; it lives as long as the control plane does."""

    control: Control
    db: Database
    channels: Channels
    whereabouts: Whereabouts
    models: Models
    seqs: RunSeqs
    refusals: Refusals
    sampling_sessions: SamplingSessions


@asynccontextmanager
async def opened(control: Control, db: Database, *, api_key: str) -> AsyncIterator[Gateway]:
    async with Channels(api_key) as channels:
        whereabouts, refusals, seqs = Whereabouts(control), Refusals(), RunSeqs(db)
        models = Models(control, db, channels, whereabouts, refusals)
        yield Gateway(control, db, channels, whereabouts, models, seqs, refusals, SamplingSessions(db))


def gateway_of(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway
