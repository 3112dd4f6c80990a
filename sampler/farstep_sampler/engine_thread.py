"""The one place where asyncio and the engine meet: an engine on a thread of its own, called from the event loop.

Commands go in through a queue and are carried out between two steps; outcomes come back through
`call_soon_threadsafe`, all of a step in one call. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import Callable

from farstep_model.adapter import Adapter
from farstep_proto.errors import Internal
from farstep_sampler.engines.torch_engine import Finished, TorchEngine
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

log = logging.getLogger(__name__)

_Command = Callable[[], None]


class EngineThread:
    """Runs an engine until `close`. Every method is for the event loop that `start` was called on."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._pending: dict[int, asyncio.Future[SampleResult]] = {}
        self._tickets = itertools.count(1)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    async def close(self) -> None:
        """Ends the thread after its present step; jobs that are not finished are cancelled."""
        self._commands.put(self._stop)
        await asyncio.to_thread(self._thread.join)
        for future in self._pending.values():
            future.cancel()

    async def sample(self, job: SampleJob, *, slot: int) -> SampleResult:
        """Runs a job; cancelling the wait frees what it holds at the next step.

        Raises:
            ApiError: the job failed; other exceptions are torch's own.
        """
        if not self.is_alive:
            raise _stopped()
        ticket = next(self._tickets)
        future: asyncio.Future[SampleResult] = self._loop.create_future()
        self._pending[ticket] = future
        self._commands.put(lambda: self._engine.submit(ticket, job, slot=slot))
        try:
            return await future
        except asyncio.CancelledError:
            self._commands.put(lambda: self._engine.cancel(ticket))
            raise
        finally:
            self._pending.pop(ticket, None)

    async def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot between two steps.

        Raises:
            InvalidInput: as `TorchEngine.load`.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def command() -> None:
            try:
                self._engine.load(slot, adapter)
            except Exception as error:  # handed to whoever waits
                self._loop.call_soon_threadsafe(_settle, future, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, None)

        self._commands.put(command)
        await future

    # On the engine's thread from here on.

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._carry_out()
                if self._engine.has_work and not self._is_closing:
                    finished = self._engine.step()
                    if finished:
                        self._loop.call_soon_threadsafe(self._deliver, finished)
        except Exception:  # our own mistake, since the engine keeps torch's to their requests
            log.exception("the engine has stopped")
            self._loop.call_soon_threadsafe(self._fail_all)

    def _carry_out(self) -> None:
        """All commands there are; waits for one where there is nothing else to do."""
        if not self._engine.has_work:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()

    def _stop(self) -> None:
        self._is_closing = True

    # Back on the event loop.

    def _deliver(self, finished: list[Finished]) -> None:
        for each in finished:
            future = self._pending.get(each.ticket)
            if future is None or future.done():
                continue  # cancelled meanwhile
            if isinstance(each.outcome, Exception):
                future.set_exception(each.outcome)
            else:
                future.set_result(each.outcome)

    def _fail_all(self) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(_stopped())


def _stopped() -> Internal:
    return Internal("the engine has stopped", hint="restart the sampler; its log has the reason")


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
