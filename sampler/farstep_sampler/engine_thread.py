"""The one place where asyncio and the engine meet: an engine on a thread of its own, called from the event loop.

Commands go in through a queue and are carried out between two steps; outcomes, and the tokens of jobs that are
watched, come back through `call_soon_threadsafe`, all of a step in one call. Nothing else is shared.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections.abc import Callable

from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_sampler.account import NOBODY, Account
from farstep_sampler.engines.base import stopped
from farstep_sampler.engines.reports import Finished, News
from farstep_sampler.engines.torch_engine import TorchEngine
from farstep_sampler.in_flight import Sampling
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

log = logging.getLogger(__name__)

_Command = Callable[[], None]


class EngineThread:
    """The torch engine as an `Engine`: runs it until `close`."""

    name = "torch"

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._in_flight: dict[int, Sampling] = {}
        self._doing: set[asyncio.Future[None]] = set()
        self._tickets = itertools.count(1)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def device(self) -> str:
        return str(self.layers.base.device)

    @property
    def layers(self) -> LoraLayers:
        return self._engine.adapters.layers

    @property
    def num_slots(self) -> int:
        return self._engine.adapters.num_slots

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
        self._fail_all()

    async def sample(self, job: SampleJob, *, slot: int, version: int = 0) -> SampleResult:
        """Runs a job; cancelling the wait frees what it holds at the next step.

        Raises:
            ApiError: the job failed; other exceptions are torch's own.
        """
        async with self.sampling(job, slot=slot, version=version) as sampling:
            return await sampling.result()

    def sampling(
        self, job: SampleJob, *, slot: int, version: int = 0, streams: bool = False, account: Account = NOBODY
    ) -> Sampling:
        """Starts a job, to be watched (`streams`), switched or waited for in a block that it does not outlive.

        Args:
            version: of the policy in the slot: what its tokens are labelled with.
            account: who asks.

        Raises:
            Internal: the engine has stopped.
        """
        if not self.is_alive:
            raise stopped()
        ticket = next(self._tickets)

        def end() -> None:
            del self._in_flight[ticket]
            if not sampling.is_done:
                self._commands.put(lambda: self._engine.cancel(ticket))

        async def switch(slot: int, version: int) -> None:
            await self._do(lambda: self._engine.switch(ticket, slot=slot, version=version))

        sampling = Sampling(end=end, switch=switch)
        self._in_flight[ticket] = sampling
        settings = {"slot": slot, "version": version}
        self._commands.put(lambda: self._engine.submit(ticket, job, **settings, streams=streams, account=account))
        return sampling

    async def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot between two steps.

        Raises:
            InvalidInput: as `TorchEngine.load`.
        """
        await self._do(lambda: self._engine.load(slot, adapter))

    async def _do(self, command: _Command) -> None:
        """Has a command carried out between two steps; raises what it raises."""
        if not self.is_alive:
            raise stopped()
        future: asyncio.Future[None] = self._loop.create_future()

        def carry_out() -> None:
            try:
                command()
            except Exception as error:  # handed to whoever waits
                self._loop.call_soon_threadsafe(_settle, future, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, None)

        self._doing.add(future)
        future.add_done_callback(self._doing.discard)
        self._commands.put(carry_out)
        await future

    # On the engine's thread from here on.

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._carry_out()
                if self._engine.has_work and not self._is_closing:
                    finished = self._engine.step()
                    news = self._engine.take_news()
                    if finished or news:
                        self._loop.call_soon_threadsafe(self._deliver, news, finished)
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

    def _deliver(self, news: list[News], finished: list[Finished]) -> None:
        for each in news:
            if (sampling := self._in_flight.get(each.ticket)) is not None:
                sampling.push(each.delta)
        for ended in finished:
            if (sampling := self._in_flight.get(ended.ticket)) is not None:
                sampling.settle(ended.outcome)

    def _fail_all(self) -> None:
        for sampling in self._in_flight.values():
            sampling.settle(stopped())
        for future in self._doing:
            _settle(future, stopped())


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
