"""`Collecting`: the rollout of one batch of prompts, from the weights of the moment in which it began.

It publishes when it is made, on the caller's thread, so that it has its place among the run's operations; it samples
there too, or on another thread while training goes on. Groups that have become too old by the time they are asked for
are sampled again (`max_staleness`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

from farstep.rollout import AgentBatch, Rollout, RolloutSession, SamplingParams

if TYPE_CHECKING:
    from farstep.trainers.rl.prompt_rows import PlacedPrompts
    from farstep.trainers.toolkit import Toolkit


class Collecting:
    """
    Args:
        threads: where it is sampled; None: on the thread that asks for the result.
    """

    def __init__(
        self,
        trainer: Toolkit,
        placed: PlacedPrompts,
        params: SamplingParams,
        settings: Mapping[str, Any],
        *,
        n_samples: int,
        agent: Callable[..., Any] | None,
        reward_fn: Callable[..., Any] | None,
        threads: Executor | None,
    ) -> None:
        self._params = params
        self._batch = AgentBatch.from_prompt_batch(placed.prompts, n_samples=n_samples)
        self._agent, self._reward_fn = agent, reward_fn
        self._session: RolloutSession = trainer.rollout_session(**settings)
        self._session.__enter__()
        self._running: Future[Rollout] | None = threads.submit(self._run) if threads is not None else None

    def result(self) -> Rollout:
        """The rollout, none of whose groups is too old; the session is closed then."""
        try:
            rollout = self._running.result() if self._running is not None else self._run()
            return self._session.freshened(rollout)
        finally:
            self._session.__exit__(None, None, None)

    def _run(self) -> Rollout:
        if self._agent is not None:
            return self._session.run_agents(
                self._agent, self._batch, reward_fn=self._reward_fn, sampling_params=self._params
            )
        return self._session.sample_batch(self._batch, self._params, reward_fn=self._reward_fn)
