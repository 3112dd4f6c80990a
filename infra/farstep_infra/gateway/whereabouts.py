"""Where the servers of a run are, and whose it is: asked of the control plane once, and again when they are away.

A server keeps its address as long as its stack is there, so what was learnt stays true.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

from farstep_infra.control.control import Control
from farstep_infra.control.fleet import Fleet
from farstep_proto.errors import ApiError, NotFound, TooManyRequests, Unavailable
from farstep_proto.v1 import control_pb2
from farstep_serving.keys import OPERATOR, Caller

_MAX_KNOWN = 10_000


class ModelFailed(ApiError):
    """Its processes could not be started; asking again changes nothing."""

    status = 422
    error_class = "ModelFailedError"


@dataclass(frozen=True, slots=True)
class RunPlace:
    """A run that was ready once."""

    run_id: str
    session_id: str
    project: str
    base_model: str
    trainer_url: str
    sampler_url: str


class Whereabouts:
    def __init__(self, control: Control) -> None:
        self._control = control
        self._runs: OrderedDict[str, RunPlace] = OrderedDict()

    @property
    def fleet(self) -> Fleet:
        return self._control.fleet

    async def run(self, run_id: str, *, caller: Caller, wait_s: float = 0.0) -> RunPlace:
        """Waits up to `wait_s` for a run that is being provisioned, and wakes one that rests.

        Raises:
            NotFound: no such run that the caller may see, or it was deleted.
            ModelFailed: it failed.
            Unavailable: it is not ready yet, or its stack is still coming up.
        """
        known = self._runs.get(run_id)
        if known is not None:
            if not caller.may_see(known.project):
                raise NotFound(f"no model {run_id!r}", field="model_id")
            return known
        place = await self._ask(run_id, caller, wait_s)
        self._runs[run_id] = place
        while len(self._runs) > _MAX_KNOWN:
            self._runs.popitem(last=False)
        return place

    async def wake(self, run_id: str, *, wait_s: float) -> None:
        """Has a run's servers come up where they rest, and waits for that; raises as `run`, but for Unavailable."""
        with suppress(Unavailable):
            await self._ask(run_id, OPERATOR, wait_s)

    def forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)

    async def _ask(self, run_id: str, caller: Caller, wait_s: float) -> RunPlace:
        try:
            run = await self._control.runs.get(run_id, caller=caller, wait_s=wait_s)
        except NotFound:
            raise NotFound(f"no model {run_id!r}", field="model_id") from None
        except TooManyRequests as error:
            raise Unavailable(error.message, retry_after_s=error.retry_after_s) from error
        return _place(run)


def _place(run: control_pb2.ProvisionedRun) -> RunPlace:
    match run.state:
        case "deleted":
            raise NotFound(f"model {run.run_id!r} was deleted", field="model_id", hint=run.message)
        case "failed":
            raise ModelFailed(f"model {run.run_id} failed: {run.message}", field="model_id")
    if not run.trainer_url:
        raise Unavailable(f"model {run.run_id} is not ready yet: {run.message or run.state}", retry_after_s=1.0)
    return RunPlace(run.run_id, run.session_id, run.project, run.base_model, run.trainer_url, run.sampler_url)
