"""One job on vLLM: a request for each sample and one for its prompt, followed to their ends.

A switch to other weights ends the requests that run and begins new ones behind the tokens that are there, whose keys
and values are computed anew. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from farstep_proto.errors import Internal
from farstep_sampler.engines.base import no_tokens
from farstep_sampler.engines.vllm.request import (
    prompt_logprobs,
    prompt_params,
    remembers,
    sampled_logprobs,
    sampling_params,
)
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleDelta, SampleResult, SampleSequence, Topk
from farstep_sampler.stops import Decode, StopStrings

_SWITCH_INTERVAL_S = 0.005
_T = TypeVar("_T")
_ids = itertools.count(1)


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What to sample with: an adapter, or None for the base model; `version` labels the tokens."""

    adapter: LoRARequest | None
    version: int


@dataclass(slots=True, eq=False)
class _Sample:
    """One sample while it grows."""

    index: int
    begun_with: int  # the version that the whole job began with
    stops: StopStrings | None
    min_tokens: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topks: list[Topk] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    stop_reason: str | None = None

    def take(self, output: CompletionOutput, *, num_topk: int, version: int) -> SampleDelta:
        """Adds what vLLM says is new, up to where a stop string is complete."""
        logprobs, topk = sampled_logprobs(cast(FlatLogprobs, output.logprobs), num_topk)
        tokens = list(output.token_ids)
        num_taken = self._end_of(tokens)
        if num_taken is None:
            num_taken = len(tokens)
            self.stop_reason = output.finish_reason if output.finish_reason in ("stop", "length") else None
        else:
            self.stop_reason = "stop"
        if topk is not None:
            topk = Topk(topk.ids[:num_taken], topk.logprobs[:num_taken])
            self.topks.append(topk)
        self.tokens += tokens[:num_taken]
        self.logprobs += logprobs[:num_taken]
        self.versions += [version] * num_taken
        return SampleDelta(
            self.index, tokens[:num_taken], logprobs[:num_taken], [version] * num_taken, self.stop_reason, topk
        )

    def result(self) -> SampleSequence:
        assert self.stop_reason is not None
        topk = None
        if self.topks:
            topk = Topk(np.concatenate([t.ids for t in self.topks]), np.concatenate([t.logprobs for t in self.topks]))
        versions = self.versions if set(self.versions) != {self.begun_with} else []
        return SampleSequence(self.tokens, self.logprobs, self.stop_reason, topk, versions)

    def _end_of(self, tokens: list[int]) -> int | None:
        """How many of the new tokens there are up to the one that completes a stop string."""
        if self.stops is None:
            return None
        for count, token in enumerate(tokens, start=1):
            may_match = len(self.tokens) + count > self.min_tokens
            if self.stops.push(token, may_match=may_match):
                return count
        return None


class VllmJob:
    """Runs one job.

    Args:
        watch: gets every sample's news as they come; None: only the result is wanted.
        decode: the tokenizer's, for stop strings.
        asker: who asks; what one has left in vLLM's prefix cache is found by no other.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        job: SampleJob,
        weights: Weights,
        *,
        watch: Callable[[SampleDelta], None] | None,
        decode: Decode,
        asker: str = "",
    ) -> None:
        self.num_sampled = 0  # tokens
        self.num_finished = 0  # samples
        self._salt = asker or None
        self._llm = llm
        self._job = job
        self._weights = weights
        self._begun_with = weights.version
        self._watch = watch
        self._decode = decode
        self._prompt = job.prompt.tolist()
        self._ended = asyncio.Event()
        self._running: dict[str, Weights] = {}  # by request id, what each was begun with

    async def run(self) -> SampleResult:
        """Samples everything; the first failure ends the rest.

        Raises:
            ApiError: the job failed; other exceptions are vLLM's own.
        """
        try:
            return await self._run()
        finally:
            self._ended.set()

    async def _run(self) -> SampleResult:
        job = self._job
        logprobs, topk, num_cached = None, None, 0
        if job.looks_at_prompt:  # before the samples, which then find the prompt in the cache
            looked = await self._look_at_prompt()
            logprobs, topk = prompt_logprobs(cast(FlatLogprobs, looked.prompt_logprobs), job)
        if not job.max_tokens:
            return SampleResult([no_tokens(job) for _ in range(job.num_samples)], logprobs, topk)
        grown = await _all_or_none([self._grow(index) for index in range(job.num_samples)])
        num_cached = min(cached for _, cached in grown)
        return SampleResult([sequence for sequence, _ in grown], logprobs, topk, num_cached)

    @property
    def weights(self) -> Weights:
        """What it samples with at present."""
        return self._weights

    async def switch(self, weights: Weights) -> None:
        """Has all that is not finished go on with other weights; returns when the old ones are not used any more.

        What remembers more than its text, in penalties or a grammar, cannot begin anew: it ends on the old ones.
        """
        if remembers(self._job):
            await self._ended.wait()
            return
        self._weights = weights
        while old := [name for name, begun_with in self._running.items() if begun_with is not weights]:
            await self._llm.abort(old)
            await asyncio.sleep(_SWITCH_INTERVAL_S)  # one that was just begun may not be known there yet

    async def _look_at_prompt(self) -> RequestOutput:
        while True:
            weights = self._weights
            async with aclosing(self._request(self._prompt, prompt_params(self._job), weights)) as outputs:
                async for output in outputs:
                    if output.outputs[0].finish_reason in ("stop", "length"):
                        return output
            self._check_switched(weights)

    async def _grow(self, index: int) -> tuple[SampleSequence, int]:
        """A sample from its first to its last token, and how much of the prompt was cached at its beginning."""
        job, num_cached = self._job, None
        sample = _Sample(index, self._begun_with, self._make_stops(), job.min_tokens)
        while sample.stop_reason is None:
            weights = self._weights
            streams = self._watch is not None or sample.stops is not None
            params = sampling_params(job, index=index, num_done=len(sample.tokens), streams=streams)
            async with aclosing(self._request(self._prompt + sample.tokens, params, weights)) as outputs:
                async for output in outputs:
                    if num_cached is None:
                        num_cached = output.num_cached_tokens or 0
                    delta = sample.take(output.outputs[0], num_topk=job.num_topk, version=weights.version)
                    self.num_sampled += len(delta.tokens)
                    if self._watch is not None and (delta.tokens or delta.stop_reason):
                        self._watch(delta)
                    if sample.stop_reason is not None:
                        break
            if sample.stop_reason is None:
                self._check_switched(weights)
        self.num_finished += 1
        return sample.result(), num_cached or 0

    async def _request(
        self, tokens: list[int], params: SamplingParams, weights: Weights
    ) -> AsyncGenerator[RequestOutput, None]:
        """One request to vLLM, known to `switch` while it runs, and aborted when its reader leaves."""
        name = str(next(_ids))
        self._running[name] = weights
        try:
            generating = self._llm.generate(
                tokens_input(tokens, cache_salt=self._salt), params, name, lora_request=weights.adapter
            )
            async with aclosing(generating) as outputs:
                async for output in outputs:
                    yield output
        finally:
            del self._running[name]

    def _check_switched(self, weights: Weights) -> None:
        if weights is self._weights:
            raise Internal("vLLM gave up a request that nobody cancelled", hint="its log has the reason")

    def _make_stops(self) -> StopStrings | None:
        if not self._job.stop_strings:
            return None
        return StopStrings(self._job.stop_strings, prompt=self._prompt[-16:], decode=self._decode)


async def _all_or_none(
    parts: list[Coroutine[Any, Any, tuple[SampleSequence, int]]],
) -> list[tuple[SampleSequence, int]]:
    """All results; the first failure, or a cancellation, ends every part before it is raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
