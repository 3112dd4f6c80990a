"""What a request to the gateway can reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from farstep_infra.control.control import Control
from farstep_infra.control.db import Database
from farstep_infra.gateway.channels import Channels
from farstep_infra.gateway.completions import Completions
from farstep_infra.gateway.creations import Creations
from farstep_infra.gateway.refusals import Refusals
from farstep_infra.gateway.samplers import Samplers
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
    creations: Creations
    seqs: RunSeqs
    refusals: Refusals
    sampling_sessions: SamplingSessions
    samplers: Samplers
    completions: Completions

    def release(self) -> None:
        """Lets everybody go who waits, now and later."""
        self.channels.release()
        self.completions.release()


@asynccontextmanager
async def opened(control: Control, db: Database, *, api_key: str) -> AsyncIterator[Gateway]:
    completions = Completions()
    refusals = Refusals(on_note=lambda request_id: completions.note(request_id, failed=True))
    async with Channels(api_key, on_outcome=completions.note_outcome) as channels:
        whereabouts, seqs = Whereabouts(control), RunSeqs(db)
        creations = Creations(control, db, channels, whereabouts, seqs)
        try:
            yield Gateway(
                control,
                db,
                channels,
                whereabouts,
                creations,
                seqs,
                refusals,
                SamplingSessions(db),
                Samplers(control, whereabouts),
                completions,
            )
        finally:
            await creations.close()


def gateway_of(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway
