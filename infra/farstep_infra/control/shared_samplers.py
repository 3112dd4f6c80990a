"""Where a base model is sampled without a run or a sampler of one's own: on the shared stack of that model.

Nobody waits here. What does not run is begun in the background, and whoever asks hears that it is not there yet, or why
it cannot be.
"""

from __future__ import annotations

import logging
import time

from farstep_infra.control.fleet import Fleet
from farstep_infra.control.provisioning import Provisioning
from farstep_infra.control.residency import Residency
from farstep_infra.control.stacks import Stack
from farstep_infra.launchers.base import LaunchFailed
from farstep_proto.errors import ApiError, Internal, TooManyRequests

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_FAILURE_S = 30.0  # for how long nobody tries again


class SharedSamplers:
    def __init__(self, fleet: Fleet, residency: Residency, provisioning: Provisioning) -> None:
        self._fleet = fleet
        self._residency = residency
        self._provisioning = provisioning
        self._failures: dict[str, tuple[float, ApiError]] = {}  # by stack: when, and what was said

    async def begin(self, base_model: str) -> None:
        """Has its samplers come up, if they are not there."""
        stack = await self._fleet.shared(base_model)
        if not stack.is_sampling:
            self._start(stack)

    async def url_of(self, base_model: str) -> str:
        """The address of the samplers, which run.

        Raises:
            TooManyRequests: they are coming up, or there is no room for them at present.
            Internal: they could not be started a moment ago.
        """
        stack = self._fleet.find_shared(base_model) or await self._fleet.shared(base_model)
        if stack.is_sampling:
            return stack.sampler_url
        at, error = self._failures.get(stack.spec.stack_id, (0.0, None))
        if error is not None and time.monotonic() - at < _FAILURE_S:
            raise error
        self._start(stack)
        raise TooManyRequests(f"the samplers of {base_model} are starting", retry_after_s=_RETRY_AFTER_S)

    def _start(self, stack: Stack) -> None:
        work_id = f"samplers-of-{stack.spec.stack_id}"
        if not self._provisioning.has(work_id) and not self._provisioning.is_released:
            self._provisioning.start(work_id, self._come_up(stack))

    async def _come_up(self, stack: Stack) -> None:
        stack_id = stack.spec.stack_id
        try:
            await self._residency.wake(stack, num_samplers=1)
        except LaunchFailed as error:
            self._fail(stack, Internal(f"{stack.spec.base_model} cannot be sampled: {error}"))
        except ApiError as error:
            self._fail(stack, error)
        except Exception:
            log.exception("waking %s", stack_id)
            self._fail(stack, Internal("the control plane made a mistake; its log has the details"))
        else:
            self._failures.pop(stack_id, None)

    def _fail(self, stack: Stack, error: ApiError) -> None:
        log.warning("the samplers of %s do not come up: %s", stack.spec.base_model, error)
        self._failures[stack.spec.stack_id] = (time.monotonic(), error)
