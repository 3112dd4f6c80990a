"""Where a managed server is: asked of the control plane when the server does not answer.

To ask for a run wakes it where it was put to sleep. What the control plane says changes the address or ends the
waiting; a control plane that says nothing changes nothing, and the old address is tried on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from farstep._address import Origin
from farstep._settings import ApiKey
from farstep.errors import FarstepError, ProvisioningError
from farstep_proto import paths
from farstep_proto.v1 import control_pb2 as pb

log = logging.getLogger(__name__)

ASK_AFTER_S = 3.0  # a server that restarts in its place is often back by then
ASK_EVERY_S = 5.0
WAIT_S = 20.0
_OVER = ("failed", "deleted")


class Whereabouts:
    """Args:
    on_found: with the address, when the control plane says that the server is ready.
    on_lost: with why it will never be.
    """

    def __init__(
        self,
        origin: Origin,
        key: ApiKey,
        *,
        on_found: Callable[[str], None],
        on_lost: Callable[[FarstepError], None],
    ) -> None:
        self._origin = origin
        self._key = key
        self._on_found = on_found
        self._on_lost = on_lost
        self._asking: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Begins to ask, unless it is doing so."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            state, message, url = await self._look()
        except FarstepError as error:
            log.debug("the control plane does not say where %s is: %s", self._what, error)
        else:
            if state == "ready" and url:
                self._on_found(url)
            elif state in _OVER:
                self._on_lost(ProvisioningError(f"{self._what} is {state}: {message}"))
        await asyncio.sleep(ASK_EVERY_S)

    async def _look(self) -> tuple[str, str, str]:
        """State, message and address."""
        from farstep._transport import Lane, Request, Transport

        origin = self._origin
        path = paths.of(paths.RUN, run_id=origin.run_id)
        if origin.sampler_id:
            path = paths.of(paths.SAMPLER, sampler_id=origin.sampler_id)
        request = Request("GET", path, params={"wait_s": f"{WAIT_S:g}"}, lane=Lane.PARKED, wait_s=WAIT_S)
        transport = Transport(origin.control_url, self._key)
        try:
            if origin.sampler_id:
                sampler = await transport.attempt(request, pb.ProvisionedSampler)
                return sampler.state, sampler.message, sampler.sampler_url
            run = await transport.attempt(request, pb.ProvisionedRun)
            return run.state, run.message, run.sampler_url if origin.is_sampler else run.trainer_url
        finally:
            await transport.aclose()

    @property
    def _what(self) -> str:
        return f"sampler {self._origin.sampler_id}" if self._origin.sampler_id else f"run {self._origin.run_id}"
