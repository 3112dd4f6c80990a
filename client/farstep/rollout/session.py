"""`RolloutSession`: samples a policy whose version is known and held, directly or for agents, and makes rows of it.

    with RolloutSession(trainer, proxy=True) as session:
        rollout = session.run_agents(run_agent, AgentBatch.from_records(records, n_samples=8), reward_fn=reward)
    rows = rollout.with_signal().rows

Opened on a TrainingClient, it samples the weights of that moment. Trains nothing, and knows no algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from farstep.rollout.agent_runs import AgentRunner
from farstep.rollout.agents import AgentBatch, AgentItem
from farstep.rollout.assembling import Assembly
from farstep.rollout.direct import DirectSampler, encoded
from farstep.rollout.gathering import Gathering, SampleItems, in_place
from farstep.rollout.loop_thread import LoopThread, waited
from farstep.rollout.params import SamplingParams
from farstep.rollout.policy import Policy
from farstep.rollout.proxy.server import Proxy
from farstep.rollout.results import Group, Rollout
from farstep.rollout.rewards import Reward
from farstep.rollout.settings import RolloutSettings
from farstep.rollout.spans import Spans
from farstep.rollout.threads import DaemonThreads
from farstep.sampling import SamplingClient
from farstep.trainers.errors import RolloutError
from farstep.training import TrainingClient

T = TypeVar("T")
RewardFn = Callable[..., Any]


class RolloutSession:
    """A with-block of either colour; each long call has an async twin.

    Args:
        client: a TrainingClient, whose present weights are published if they were not yet; or a SamplingClient, which
            stays the caller's to close.
        tokenizer: of the model; None: the client's.
        settings: see `RolloutSettings`; each can be given by its name.

    Raises:
        RolloutError: a RuntimeError, for settings that cannot be, and for calls outside the block.
    """

    def __init__(
        self,
        client: TrainingClient | SamplingClient,
        *,
        tokenizer: Any = None,
        settings: RolloutSettings | None = None,
        **given: Any,
    ) -> None:
        try:
            self.settings = replace(settings or RolloutSettings(), **given)
        except TypeError as error:
            raise RolloutError(str(error), field="settings") from error
        self._policy = Policy(client, self.settings)
        self._tokenizer = tokenizer
        self._client = client
        self._proxy: Proxy | None = None
        self._loop: LoopThread | None = None
        self._threads: Executor | None = None
        self._reward_threads: Executor | None = None
        self._num_prompts = self._num_running = 0

    # the block

    def __enter__(self) -> Self:
        self._refuse_open()
        self._policy.open()
        try:
            self._begin()
        except BaseException:
            self._policy.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        self._policy.close()

    async def __aenter__(self) -> Self:
        self._refuse_open()
        await self._policy.open_async()
        try:
            self._begin()
        except BaseException:
            await self._policy.close_async()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end()
        await self._policy.close_async()

    # what it samples

    @property
    def policy_version(self) -> int:
        """The version that is sampled; with `in_flight="switch"` the oldest that is."""
        return self._policy.client.policy_version

    @property
    def sampling_client(self) -> SamplingClient:
        return self._policy.client

    def refresh(self) -> int:
        """Goes on with the run's weights as they are now; gives their version. What is under way keeps the old ones."""
        self._threads_or_refuse()
        version = self._policy.refresh()
        if not self._num_running:
            self._policy.close_earlier()
        return version

    async def refresh_async(self) -> int:
        """As `refresh`."""
        self._threads_or_refuse()
        version = await self._policy.refresh_async()
        if not self._num_running:
            await self._policy.close_earlier_async()
        return version

    # the proxy

    @property
    def base_url(self) -> str:
        """The address of the OpenAI API, of no sample; agents are told that of their own."""
        if self._proxy is None:
            raise RolloutError("this session has no open proxy", field="proxy", hint="RolloutSession(…, proxy=True)")
        return self._proxy.base_url()

    def get_base_url(self) -> str:
        return self.base_url

    @property
    def api_key(self) -> str:
        """The proxy's, drawn anew for each session."""
        self.get_base_url()
        assert self._proxy is not None
        return self._proxy.api_key

    # rollouts

    async def rollout_batch_async(
        self,
        prompts: Sequence[Any],
        n_samples: int = 1,
        sampling_params: SamplingParams | None = None,
        *,
        records: Sequence[Mapping[str, Any]] | None = None,
        reward_fn: RewardFn | None = None,
    ) -> Rollout:
        """Samples each prompt `n_samples` times.

        Args:
            prompts: each a text, which is tokenized as it is, or messages, which go through the chat template.
            records: [len(prompts)], what is known of each, for rewards.
            reward_fn: scores each sample; see `farstep.rollout.rewards`.

        Raises:
            RolloutError: outside the block, or a prompt is neither, or all samples failed.
            RewardError: samples without a finite reward; it names them.
        """
        self._threads_or_refuse()
        tokens = [encoded(self.tokenizer, prompt, index) for index, prompt in enumerate(prompts)]
        batch = AgentBatch(_records(records, prompts), list(prompts), tokens, n_samples)
        return await self._direct(batch, sampling_params, reward_fn)

    rollout_batch = waited(rollout_batch_async)

    async def rollout_token_batch_async(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        n_samples: int = 1,
        sampling_params: SamplingParams | None = None,
        *,
        records: Sequence[Mapping[str, Any]] | None = None,
        reward_fn: RewardFn | None = None,
    ) -> Rollout:
        """As `rollout_batch`, of prompts that are token ids."""
        self._threads_or_refuse()
        rows = [list(row) for row in prompt_tokens]
        batch = AgentBatch(_records(records, rows), [None] * len(rows), rows, n_samples)
        return await self._direct(batch, sampling_params, reward_fn)

    rollout_token_batch = waited(rollout_token_batch_async)

    async def sample_batch_async(
        self,
        batch: AgentBatch,
        sampling_params: SamplingParams | None = None,
        *,
        reward_fn: RewardFn | None = None,
    ) -> Rollout:
        """As `rollout_batch`, of the prompts of a loader's batch (`AgentBatch.from_prompt_batch`), by their tokens
        where these are known."""
        self._threads_or_refuse()
        if batch.input_tokens is None:
            tokens = [encoded(self.tokenizer, prompt, index) for index, prompt in enumerate(batch.prompts)]
            batch = replace(batch, input_tokens=tokens)
        return await self._direct(batch, sampling_params, reward_fn)

    sample_batch = waited(sample_batch_async)

    async def run_agents_async(
        self,
        run_agent: Callable[..., Any],
        batch: AgentBatch,
        *,
        reward_fn: RewardFn | None = None,
        sampling_params: SamplingParams | None = None,
        samples_per_call: int | None = 1,
    ) -> Rollout:
        """Runs an agent for each sample of a batch; `farstep.rollout.agents` says what it gets and gives.

        Args:
            reward_fn: scores the samples to which the agent gave no reward.
            samples_per_call: so many samples are given to one call of the agent, which then fail together; None: all.

        Raises:
            RolloutError: outside the block; the agent gave a wrong number of trajectories; all samples failed.
            RewardError: samples without a finite reward; it names them.
        """
        threads, params = self._threads_or_refuse(), sampling_params or self.settings.sampling_params
        size = samples_per_call if samples_per_call is not None else max(len(batch), 1)
        if size < 1:
            raise RolloutError(f"{samples_per_call} is not at least 1", field="samples_per_call")
        runner = AgentRunner(
            run_agent,
            self.settings,
            params,
            self._assembly,
            threads,
            proxy=self._proxy,
            client=lambda: self._policy.client,
            tokenizer=self.tokenizer,
            first_prompt=self._num_prompts,
        )
        self._num_prompts += len(batch.prompts)
        return await self._gather(list(batch.iter_samples()), size, runner.sample, reward_fn, runner.waiting)

    run_agents = waited(run_agents_async)

    # staleness

    def stale_groups(self, rollout: Rollout) -> list[Group]:
        """Those whose oldest token is more than `max_staleness` published versions behind the run's newest one."""
        limit, newest = self.settings.max_staleness, self._policy.newest_version
        if limit is None:
            return []
        return [group for group in rollout.groups if (v := group.policy_version) is not None and newest - v > limit]

    async def freshened_async(self, rollout: Rollout) -> Rollout:
        """The rollout with its stale groups sampled again by the run's weights as they are now.

        Groups that are stale again after `max_resamples` times, because training is faster than sampling, are dropped.
        """
        for _ in range(self.settings.max_resamples):
            stale = self.stale_groups(rollout)
            if not stale or rollout.again is None:
                return rollout
            await self.refresh_async()
            items = [sample.item for group in stale for sample in group.samples]
            rollout = in_place(rollout, await rollout.again(items), num_resampled=len(items))
        stale_prompts = {group.prompt_index for group in self.stale_groups(rollout)}
        return rollout.keep(lambda group: group.prompt_index not in stale_prompts, reason="stale")

    freshened = waited(freshened_async)

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = self._client.get_tokenizer()
        return self._tokenizer

    # inside

    async def _direct(self, batch: AgentBatch, params: SamplingParams | None, reward_fn: RewardFn | None) -> Rollout:
        sampler = DirectSampler(
            Spans(self.tokenizer),
            self._assembly,
            params or self.settings.sampling_params,
            in_flight=self.settings.in_flight,
        )
        self._num_prompts += len(batch.prompts)

        async def sample(items: Sequence[AgentItem]) -> Any:
            return await sampler.sample(self._policy.client, items)

        return await self._gather(list(batch.iter_samples()), batch.n_samples, sample, reward_fn, sampler.waiting)

    async def _gather(
        self,
        items: list[AgentItem],
        size: int,
        sample: SampleItems,
        reward_fn: RewardFn | None,
        waiting: Callable[[], list[str]],
    ) -> Rollout:
        assert self._reward_threads is not None
        reward = Reward(reward_fn) if reward_fn is not None else None
        threads = self._reward_threads

        async def run(items: Sequence[AgentItem]) -> Rollout:
            gathering = Gathering(
                sample,
                reward,
                self.settings,
                self._assembly,
                client=self._policy.client,
                threads=threads,
                max_row_len=self._policy.max_row_len,
                waiting=waiting,
            )
            parts = [items[at : at + size] for at in range(0, len(items), size)]
            self._num_running += 1
            try:
                return replace(await gathering.run(parts), again=run)
            finally:
                self._num_running -= 1

        return await self.freshened_async(await run(items))

    @property
    def _assembly(self) -> Assembly:
        settings = self.settings
        return Assembly(Spans(self.tokenizer), settings.loss_mask_policy, answer_key=settings.answer_key)

    def _begin(self) -> None:
        settings = self.settings
        self._threads, self._reward_threads = DaemonThreads("agent"), DaemonThreads("reward")
        if settings.proxy:
            proxy = Proxy(settings, endpoint=self._policy.endpoint, policy_version=lambda: self.policy_version)
            proxy.start()
            self._proxy = proxy

    def _end(self) -> None:
        for threads in (self._threads, self._reward_threads):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)
        if self._proxy is not None:
            self._proxy.stop()
        if self._loop is not None:
            self._loop.stop()
        self._threads = self._reward_threads = self._proxy = self._loop = None

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._threads is None:
            coroutine.close()
        self._threads_or_refuse()
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop.run(coroutine)

    def _threads_or_refuse(self) -> Executor:
        if self._threads is None:
            raise RolloutError("this session is not open", hint="with RolloutSession(…) as session: …")
        return self._threads

    def _refuse_open(self) -> None:
        if self._threads is not None:
            raise RolloutError("this session is open already")


def _records(records: Sequence[Mapping[str, Any]] | None, prompts: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    return [{}] * len(prompts) if records is None else records
