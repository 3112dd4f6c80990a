"""Runs an agent for some samples: attempts, what the proxy saw of them, what became of them.

One that fails takes nothing with it but its own samples, and is begun anew as often as its kind of failure allows.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from farstep.rollout.agents import AgentBatch, AgentItem, AgentTrajectory, normalised
from farstep.rollout.assembling import Assembly
from farstep.rollout.calling import call_agent
from farstep.rollout.collecting import Collector
from farstep.rollout.direct import encoded
from farstep.rollout.failures import BudgetExceeded, FailureKind, kind_of
from farstep.rollout.params import SamplingParams
from farstep.rollout.proxy.server import Proxy
from farstep.rollout.results import RolloutSample
from farstep.rollout.settings import RolloutSettings
from farstep.rollout.turns import Turn
from farstep.sampling import SamplingClient
from farstep.trainers.errors import RolloutError


@dataclass(slots=True)
class AgentContext:
    """What an agent is told.

    Args:
        base_url: of the OpenAI API: of its sample, where it was given one alone; else see each item's own.
        model: what to ask there; any other name means the same.
    """

    base_url: str
    api_key: str
    model: str
    sampling_params: SamplingParams
    tokenizer: Any
    dropped: dict[tuple[int, int], str]

    def get_base_url(self) -> str:
        """Raises RolloutError where the session has no proxy."""
        if not self.base_url:
            raise RolloutError("this session has no proxy", field="proxy", hint="RolloutSession(…, proxy=True)")
        return self.base_url

    def drop(self, item: AgentItem, reason: str = "filtered") -> None:
        """Leaves a sample out, whatever the agent gives for it."""
        self.dropped[item.place] = reason


@dataclass(frozen=True, slots=True)
class _Attempt:
    trajectories: dict[tuple[int, int], AgentTrajectory]
    error: BaseException | None
    dropped: dict[tuple[int, int], str]


class AgentRunner:
    """Args:
    first_prompt: added to a batch's prompt numbers in the addresses of samples, so that no two of a session are alike.
    """

    def __init__(
        self,
        run_agent: Callable[..., Any],
        settings: RolloutSettings,
        params: SamplingParams,
        assembly: Assembly,
        threads: Executor,
        *,
        proxy: Proxy | None,
        client: Callable[[], SamplingClient],
        tokenizer: Any,
        first_prompt: int,
    ) -> None:
        if not callable(run_agent):
            raise RolloutError(f"a {type(run_agent).__name__} cannot be called", field="run_agent")
        self._run_agent = run_agent
        self._settings = settings
        self._params = params
        self._assembly = assembly
        self._threads = threads
        self._proxy = proxy
        self._client = client
        self._tokenizer = tokenizer
        self._first_prompt = first_prompt
        self._running: dict[tuple[int, int], Collector] = {}
        self._opened: Counter[tuple[int, int]] = Counter()

    def waiting(self) -> list[str]:
        return [collector.describe() for collector in list(self._running.values())]

    async def sample(self, items: Sequence[AgentItem]) -> list[RolloutSample]:
        """A sample for each item, which are given to the agent together.

        Raises:
            RolloutError: the agent gave more or fewer trajectories than there are items, or what is none.
        """
        too_long = [item for item in items if self._is_too_long(item)]
        dropped = [RolloutSample(item, outcome="dropped", reason="prompt_too_long") for item in too_long]
        items = [item for item in items if item not in too_long]
        return dropped + (await self._sample_all(items) if items else [])

    async def _sample_all(self, items: Sequence[AgentItem]) -> list[RolloutSample]:
        retried: list[FailureKind] = []
        for attempt in itertools.count():
            collectors = {item.place: self._open(item, attempt) for item in items}
            try:
                done = await self._attempt(items, collectors)
            finally:
                self._close(collectors)
            kind = kind_of(done.error) if done.error is not None else None
            if kind is None or retried.count(kind) >= self._settings.retries.limit(kind):
                return [self._sample(item, done, kind, collectors[item.place], retried) for item in items]
            retried.append(kind)
        raise AssertionError

    async def _attempt(self, items: Sequence[AgentItem], collectors: dict[tuple[int, int], Collector]) -> _Attempt:
        proxy, dropped = self._proxy, dict[tuple[int, int], str]()
        if proxy is not None:
            items = [replace(item, base_url=proxy.base_url(collectors[item.place].name)) for item in items]
        base_url = items[0].base_url if len(items) == 1 else proxy.base_url() if proxy is not None else ""
        batch = AgentBatch([], []).part(items)
        key = proxy.api_key if proxy is not None else ""
        model = collectors[items[0].place].endpoint().model
        context = AgentContext(base_url, key, model, self._params, self._tokenizer, dropped)
        try:
            async with asyncio.timeout(self._settings.timeout_s) as limit:
                results = await call_agent(self._run_agent, context, batch, self._threads)
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                error = BudgetExceeded(f"the agent took more than {self._settings.timeout_s:g} s", field="timeout_s")
            return _Attempt({}, error, dropped)
        return _Attempt(normalised(results, batch), None, dropped)

    def _sample(
        self,
        item: AgentItem,
        done: _Attempt,
        kind: FailureKind | None,
        collector: Collector,
        retried: Sequence[FailureKind],
    ) -> RolloutSample:
        about: dict[str, Any] = {"retried": tuple(retried), "requests": dict(collector.problems)}
        if kind is not None:
            return self._failed(item, done, kind, collector, about)
        trajectory = done.trajectories[item.place]
        turns = _as_seen(trajectory, collector) or list(collector.turns)
        reason = done.dropped.get(item.place) or trajectory.dropped
        if reason:
            return RolloutSample(item, turns, outcome="dropped", reason=reason, reward=trajectory.reward, **about)
        return self._assembled(item, turns, reward=trajectory.reward, metadata=trajectory.metadata, **about)

    def _failed(
        self, item: AgentItem, done: _Attempt, kind: FailureKind, collector: Collector, about: dict[str, Any]
    ) -> RolloutSample:
        about |= {"outcome": "failed", "reason": kind, "error": done.error}
        if self._settings.on_failure == "raise":
            where = f"prompt {item.prompt_index}, sample {item.sample_index}"
            raise RolloutError(f"the agent failed at {where}: {done.error!r}", field="run_agent") from done.error
        if self._settings.on_failure == "reward" and collector.turns:
            return self._assembled(item, list(collector.turns), reward=self._settings.failure_reward, **about)
        return RolloutSample(item, list(collector.turns), **about)

    def _assembled(self, item: AgentItem, turns: list[Turn], **about: Any) -> RolloutSample:
        return self._assembly.sample(item, turns, **about)

    def _is_too_long(self, item: AgentItem) -> bool:
        """Of prompts that are text, messages or tokens; what else an agent takes has no length."""
        limit = self._params.max_prompt_len
        if limit is None:
            return False
        if item.input_tokens is not None:
            return len(item.input_tokens) > limit
        if not isinstance(item.prompt, str | list | tuple) or not item.prompt:
            return False
        return len(encoded(self._tokenizer, item.prompt, item.prompt_index)) > limit

    def _open(self, item: AgentItem, attempt: int) -> Collector:
        prompt = self._first_prompt + item.prompt_index
        # No two attempts have one name: what an abandoned one still asks for is not taken for another's.
        again = self._opened[item.place]
        self._opened[item.place] += 1
        name = f"{prompt}-{item.sample_index}" + (f"-{again}" if again else "")
        # Turns of one attempt are all of one policy, whatever the session goes on with meanwhile.
        endpoint = self._client().get_openai_endpoint
        collector = Collector(name, self._params, endpoint, (item.prompt_index, item.sample_index, attempt))
        self._running[item.place] = collector
        if self._proxy is not None:
            self._proxy.open(collector)
        return collector

    def _close(self, collectors: dict[tuple[int, int], Collector]) -> None:
        for place, collector in collectors.items():
            self._running.pop(place, None)
            if self._proxy is not None:
                self._proxy.close(collector)


def _as_seen(trajectory: AgentTrajectory, collector: Collector) -> list[Turn]:
    """The turns that an agent handed over; what it asked with, the proxy knows better."""
    is_models_own = {turn.request_id: turn.is_models_own for turn in collector.turns}
    given = [turn for each in trajectory.turns if (turn := each.turn()) is not None]
    return [replace(turn, is_models_own=is_models_own.get(turn.request_id, True)) for turn in given]
