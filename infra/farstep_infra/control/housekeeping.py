"""What a control plane does unasked: it closes what nobody uses and forgets what nobody will ask for."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from farstep_infra.control.db import Database
from farstep_infra.control.idempotency import forget_old_answers
from farstep_infra.control.samplers import FreshSamplers
from farstep_infra.control.sessions import Sessions
from farstep_infra.control.usage import UsageLedger
from farstep_proto.errors import ApiError

log = logging.getLogger(__name__)

_LOOKS_AT_LEAST = 4  # times within the silence that a session is allowed
_MOST_OFTEN_S = 0.2
_LEAST_OFTEN_S = 60.0
SAMPLING_UNUSED_S = 30 * 86_400.0
_LOOKS_AT_SAMPLING_EVERY_S = 3600.0


class Housekeeping:
    """
    Args:
        silent_s: how long a session's client may say nothing before the session is closed.
        sampling_unused_s: how long nobody may have sampled in the name of a closed session before what it sampled from
            is forgotten.
    """

    def __init__(
        self,
        db: Database,
        sessions: Sessions,
        samplers: FreshSamplers,
        usage: UsageLedger,
        *,
        silent_s: float,
        sampling_unused_s: float = SAMPLING_UNUSED_S,
    ) -> None:
        self._db = db
        self._sessions = sessions
        self._samplers = samplers
        self._usage = usage
        self._silent_s = silent_s
        self._sampling_unused_s = sampling_unused_s
        self._looked_at_sampling = -math.inf  # monotonic

    async def run(self) -> None:
        """Until it is cancelled; a database that is away is no reason to end."""
        every_s = min(max(self._silent_s / _LOOKS_AT_LEAST, _MOST_OFTEN_S), _LEAST_OFTEN_S)
        while True:
            try:
                await self.sweep()
            except ApiError as error:
                log.warning("nothing was swept: %s", error)
            except Exception:
                log.exception("nothing was swept")
            await asyncio.sleep(every_s)

    async def sweep(self) -> None:
        for session_id in await self._sessions.close_silent(silent_s=self._silent_s):
            log.info("%s is closed: its client was silent for %.0f s", session_id, self._silent_s)
        await self._samplers.stop_all_of_closed()
        async with self._db.transaction() as db:
            await forget_old_answers(db)
        await self._usage.forget_ended()
        if time.monotonic() > self._looked_at_sampling + _LOOKS_AT_SAMPLING_EVERY_S:
            await self._sessions.forget_sampling(unused_s=self._sampling_unused_s)
            self._looked_at_sampling = time.monotonic()
