"""Which sampler answers for a sampling session: its run's, or the shared one of its base model.

A checkpoint needs no sampler of its own: any of its base model loads it when it is asked for.
"""

from __future__ import annotations

from contextlib import suppress

from farstep_infra.control.control import Control
from farstep_infra.control.tables import SamplingSessionRow
from farstep_infra.gateway.whereabouts import Whereabouts
from farstep_proto.errors import Conflict, TooManyRequests, Unavailable
from farstep_serving.keys import OPERATOR

_RETRY_AFTER_S = 1.0
_BEGIN_S = 0.01  # who waits at all has what rests woken


class Samplers:
    def __init__(self, control: Control, whereabouts: Whereabouts) -> None:
        self._control = control
        self._whereabouts = whereabouts

    async def begin(self, row: SamplingSessionRow) -> None:
        """Has the sampler come up in the background, so that it is there when the first sample comes."""
        if not row.run_id:
            await self._control.shared_samplers.begin(row.base_model)

    async def url_of(self, row: SamplingSessionRow) -> str:
        """The address of a sampler that runs, as far as is known.

        Raises:
            TooManyRequests: it is coming up, or there is no room for it at present.
            NotFound: its run was deleted.
            Internal: it could not be started a moment ago.
        """
        if not row.run_id:
            return await self._control.shared_samplers.url_of(row.base_model)
        try:
            place = await self._whereabouts.run(row.run_id, caller=OPERATOR, wait_s=_BEGIN_S)
        except (Unavailable, Conflict) as error:
            raise TooManyRequests(error.message, retry_after_s=_RETRY_AFTER_S) from error
        return place.sampler_url or await self._control.shared_samplers.url_of(row.base_model)

    async def wake(self, row: SamplingSessionRow) -> None:
        """After its sampler could not be reached: has it come up where it rests."""
        if row.run_id:
            with suppress(Unavailable, Conflict):
                await self._whereabouts.wake(row.run_id, wait_s=_BEGIN_S)
