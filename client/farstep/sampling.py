"""`SamplingClient`: samples from one policy, checkpoint or base model on one sampler.

It speaks to a replica or a router alike. What it samples is fixed when it is made; a client pinned to a
policy version says so with every request, and only replicas that satisfy the pin answer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from farstep import _retry
from farstep._address import Address
from farstep._awake import clock
from farstep._closing import Closing
from farstep._connection import Connection
from farstep._convert import (
    Decode,
    checked_prompt,
    prompt_logprobs,
    sample_result,
    sampling_params_to_proto,
    whole_number,
)
from farstep._loop import awaiting, blocking, run, start
from farstep._settings import ApiKey
from farstep._streaming import Reading
from farstep._tokenizer import tokenizer_of
from farstep.errors import FarstepError, InvalidInputError, NotFoundError, PublishTimeoutError, checked
from farstep.future import Future
from farstep.results import SampleResult
from farstep.stream import TokenStream
from farstep.types import ModelInput, SamplingParams
from farstep_proto import paths
from farstep_proto.names import CheckpointPath
from farstep_proto.v1 import sampling_pb2, training_pb2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Pin = Literal["min", "exact"]

_DEFAULT_PARAMS = SamplingParams()
_SUBMITTED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Target:
    """What is sampled: a run's policy, a checkpoint, or the base model where both are empty.

    `base_model` is the name that it was asked for by; empty: the sampler's own.
    """

    run_id: str = ""
    model_path: str = ""
    policy_version: int = 0
    pin: Pin | None = None
    base_model: str = ""

    def headers(self) -> Mapping[str, str]:
        match self.pin:
            case "min":
                return {paths.MIN_POLICY_VERSION: str(self.policy_version)}
            case "exact":
                return {paths.EXACT_POLICY_VERSION: str(self.policy_version)}
            case None:
                return {}


@dataclass(frozen=True, slots=True)
class OpenAiEndpoint:
    """The OpenAI API of a sampler: `headers` go with every request, and hold it to a version of the policy."""

    base_url: str
    api_key: str = field(repr=False)
    model: str
    headers: Mapping[str, str]


class SamplingClient(Closing):
    """Made by a ServiceClient or a TrainingClient; can be pickled.

    An unpickled client connects when it is first used. Of the key, see `farstep._settings.ApiKey`: one that
    was given as an argument is part of the pickle, any other is looked up again.
    """

    def __init__(self, sampler: Connection, target: Target, *, info: training_pb2.ServerInfo) -> None:
        """Takes over the caller's hold on `sampler`."""
        self._sampler = sampler
        self._target = target
        self._base_model = target.base_model or info.base_model
        self._vocab_size = info.vocab_size
        self._max_seq_len = info.max_seq_len

    @property
    def url(self) -> str:
        """The address of the sampler; its OpenAI API is below `/v1`."""
        return self._sampler.url

    @property
    def policy_version(self) -> int:
        """The version that this client is pinned to, or was made for; 0 is the base model."""
        return self._target.policy_version

    def _sample(
        self,
        prompt: ModelInput | Sequence[int],
        num_samples: int = 1,
        sampling_params: SamplingParams = _DEFAULT_PARAMS,
        *,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_logprobs: int = 0,
        affinity_key: str | None = None,
        in_flight: Literal["finish", "switch"] = "finish",
    ) -> Coroutine[Any, Any, Future[SampleResult]]:
        """Samples `num_samples` continuations of one prompt.

        Args:
            prompt: a model input or token ids.
            include_prompt_logprobs: also log-probabilities of the prompt's tokens, at temperature 1.
            topk_prompt_logprobs, topk_logprobs: so many candidates for each prompt or sampled token.
            affinity_key: requests with the same key prefer the same replica.
            in_flight: "switch" lets sequences go on with a newer version of the run that comes meanwhile; what they
                have read so far stays as the old one read it. `policy_versions` then says whose each token is.

        Raises:
            InvalidInputError: an argument cannot be; nothing was submitted.
            PolicyNotReadyError: from `result()`; no replica serves the pinned version in time.
        """
        request = self._request(prompt, sampling_params_to_proto(sampling_params))
        request.num_samples = whole_number("num_samples", num_samples, at_least=1)
        request.include_prompt_logprobs = include_prompt_logprobs
        request.topk_prompt_logprobs = whole_number("topk_prompt_logprobs", topk_prompt_logprobs, at_least=0)
        request.topk_logprobs = whole_number("topk_logprobs", topk_logprobs, at_least=0)
        request.affinity_key = affinity_key or ""
        if in_flight not in ("finish", "switch"):
            raise InvalidInputError(f"{in_flight!r} is neither 'finish' nor 'switch'", field="in_flight")
        if in_flight == "switch" and (not self._target.run_id or self._target.pin == "exact"):
            raise InvalidInputError("only a run that is not pinned to one version can switch", field="in_flight")
        request.in_flight = in_flight
        return self._submit(request, sample_result, "sample")

    sample = blocking(_sample)
    sample_async = awaiting(_sample)

    def stream(
        self,
        prompt: ModelInput | Sequence[int],
        sampling_params: SamplingParams = _DEFAULT_PARAMS,
        *,
        topk_logprobs: int = 0,
        affinity_key: str | None = None,
        in_flight: Literal["finish", "switch"] = "finish",
    ) -> TokenStream:
        """Samples one continuation of a prompt, and gives its tokens as they come.

        What comes is an iterator and an async iterator of `SampledToken`. Leaving the loop ends the sampling.

            for token in client.stream(prompt): ...
            async for token in client.stream(prompt): ...

        Where the connection or a replica is lost, it goes on with the same tokens, of the version that it began with.

        Args:
            prompt, sampling_params, topk_logprobs, affinity_key, in_flight: as in `sample`.

        Raises:
            InvalidInputError: an argument cannot be; nothing was submitted.
        """
        request = self._request(prompt, sampling_params_to_proto(sampling_params))
        request.num_samples = 1
        request.topk_logprobs = whole_number("topk_logprobs", topk_logprobs, at_least=0)
        request.affinity_key = affinity_key or ""
        request.in_flight = in_flight
        if not request.params.HasField("seed"):
            request.params.seed = secrets.randbits(63)
        reading = Reading(self._sampler, request, self._target.headers())
        return TokenStream(reading.inbox, start(reading.run()))

    def _compute_logprobs(self, prompt: ModelInput | Sequence[int]) -> Coroutine[Any, Any, Future[list[float | None]]]:
        """The log-probability of each of the prompt's T tokens at temperature 1; None at index 0."""
        return self._submit(self._logprobs_request(prompt), prompt_logprobs, "compute_logprobs")

    compute_logprobs = blocking(_compute_logprobs)
    compute_logprobs_async = awaiting(_compute_logprobs)

    def _compute_logprobs_batch(
        self, prompts: Sequence[ModelInput | Sequence[int]]
    ) -> Coroutine[Any, Any, list[Future[list[float | None]]]]:
        """`compute_logprobs` of many prompts, submitted together: a future for each, in their order.

        The sampler computes them in batches of like lengths. All prompts are checked before the first is submitted.

        Raises:
            InvalidInputError: naming the prompt, as `prompts[3]`; nothing was submitted.
        """
        requests = [self._logprobs_request(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)]
        return self._submit_all(requests)

    compute_logprobs_batch = blocking(_compute_logprobs_batch)
    compute_logprobs_batch_async = awaiting(_compute_logprobs_batch)

    async def _get_base_model(self) -> str:
        """The name of the model under the policy."""
        return self._base_model

    get_base_model = blocking(_get_base_model)
    get_base_model_async = awaiting(_get_base_model)

    def get_openai_endpoint(self) -> OpenAiEndpoint:
        """Where any OpenAI client finds what this client samples, as of now: a server may move."""
        target = self._target
        model = target.run_id or target.model_path or self._base_model
        if target.pin == "exact":
            model = f"{target.run_id}@{target.policy_version}"
        return OpenAiEndpoint(f"{self.url}/v1", self._sampler.key.secret or "", model, dict(target.headers()))

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer; needs the extra `farstep[tokenizers]`."""
        return tokenizer_of(self._sampler)

    def ensure_ready(self, timeout: float = 60.0) -> None:
        """Returns when the sampler answers and serves what this client is pinned to.

        Raises:
            ResultTimeout: it does not answer in time.
            PublishTimeoutError: it answers, but does not serve the pinned version in time.
        """
        run(self._ensure_ready(timeout))

    async def _ensure_ready(self, timeout_s: float) -> None:
        began_at = time.monotonic()
        await self._sampler.check_health(timeout_s)
        await self._wait_until_served(timeout_s - (time.monotonic() - began_at))

    async def _wait_until_served(self, timeout_s: float) -> None:
        if self._target.pin is not None:
            await wait_until_served(
                self._sampler, self._target.run_id, self._target.policy_version, timeout_s=max(timeout_s, 0.1)
            )

    async def _release(self) -> None:
        await self._sampler.release()

    def _logprobs_request(self, prompt: Any, field: str = "prompt") -> sampling_pb2.SampleRequest:
        request = self._request(prompt, sampling_pb2.SamplingParams(max_tokens=0), field)
        request.num_samples = 1
        request.include_prompt_logprobs = True
        return request

    async def _submit_all(self, requests: list[sampling_pb2.SampleRequest]) -> list[Future[list[float | None]]]:
        """Submits as many at a time as there are connections for; where one fails, those submitted are dropped."""
        room = asyncio.Semaphore(_SUBMITTED_AT_ONCE)

        async def submit(request: sampling_pb2.SampleRequest) -> Future[list[float | None]]:
            async with room:
                return await self._submit(request, prompt_logprobs, "compute_logprobs")

        futures = await asyncio.gather(*map(submit, requests), return_exceptions=True)
        good = [future for future in futures if not isinstance(future, BaseException)]
        for error in futures:
            if isinstance(error, BaseException):
                await asyncio.gather(*(future._cancel() for future in good), return_exceptions=True)
                raise error
        return good

    def _request(
        self, prompt: Any, params: sampling_pb2.SamplingParams, field: str = "prompt"
    ) -> sampling_pb2.SampleRequest:
        self._refuse_closed()
        return sampling_pb2.SampleRequest(
            prompt=checked_prompt(prompt, vocab_size=self._vocab_size, max_seq_len=self._max_seq_len, field=field),
            params=params,
            run_id=self._target.run_id,
            model_path=self._target.model_path,
        )

    async def _submit(self, request: sampling_pb2.SampleRequest, decode: Decode[T], verb: str) -> Future[T]:
        operation_id, pending = await self._sampler.submit(
            paths.SAMPLES,
            [request.SerializeToString()],
            params={"key": uuid.uuid4().hex},
            headers=self._target.headers(),
            again=True,
        )
        return Future(pending, decode, operation_id=operation_id, verb=verb, connection=self._sampler)

    def __reduce__(self) -> tuple[Any, ...]:
        info = training_pb2.ServerInfo(
            base_model=self._base_model, vocab_size=self._vocab_size, max_seq_len=self._max_seq_len
        )
        return _unpickled, (self._sampler.address, self._sampler.key, self._target, info.SerializeToString())

    def __repr__(self) -> str:
        target = self._target.run_id or self._target.model_path or self._base_model
        pin = f" {self._target.pin} version {self._target.policy_version}" if self._target.pin else ""
        return f"<SamplingClient {target}{pin} on {self._sampler.url}>"


def _unpickled(address: Address, key: ApiKey, target: Target, info: bytes) -> SamplingClient:
    return SamplingClient(Connection.take(address, key), target, info=training_pb2.ServerInfo.FromString(info))


def sampler_path(model_path: str) -> str:
    """The checkpoint path in its own form; refuses one that no sampler loads."""
    with checked():
        path = CheckpointPath.parse(model_path, field="model_path")
    if path.kind != "sampler_weights":
        raise InvalidInputError(
            f"{model_path} is no sampler's checkpoint",
            field="model_path",
            hint="samplers load …/sampler_weights/<name>",
        )
    return str(path)


async def open_sampling_client(address: Address, key: ApiKey, target: Target) -> SamplingClient:
    """A client of a running sampler, which has loaded `target.model_path` where there is one."""
    sampler = Connection.take(address, key)
    try:
        info = await sampler.load_info(budget_s=None if address.origin else _retry.CONNECT_BUDGET_S)
        if target.model_path:
            message = sampling_pb2.LoadPolicyRequest(model_path=target.model_path)
            state = await sampler.call("POST", paths.LOAD_POLICY, sampling_pb2.PolicyState, message=message)
            target = replace(target, policy_version=state.newest_version)
    except BaseException:
        await sampler.release()
        raise
    return SamplingClient(sampler, target, info=info)


async def wait_until_served(sampler: Connection, run_id: str, version: int, *, timeout_s: float) -> None:
    """Returns when the sampler serves that version of the run, or a newer one.

    Raises:
        PublishTimeoutError: it does not within the time.
    """
    deadline = clock() + timeout_s
    path = paths.of(paths.POLICY, run_id=run_id)
    newest = "none"
    while (left_s := deadline - clock()) > 0:
        try:
            state = await sampler.call(
                "GET",
                path,
                sampling_pb2.PolicyState,
                params={"min_version": str(version)},
                wait_s=left_s,
                budget_s=left_s,
            )
        except NotFoundError:  # it has not heard of the run yet
            await _pause()
            continue
        except FarstepError as error:
            raise PublishTimeoutError(f"the sampler cannot say whether it serves {run_id}: {error}") from error
        if state.newest_version >= version:
            return
        newest = str(state.newest_version)
        await _pause()
    raise PublishTimeoutError(
        f"version {version} of {run_id} is published, but after {timeout_s:g} s no replica serves it; newest: {newest}",
        hint="is the sampler connected to this trainer?",
    )


async def _pause() -> None:
    await asyncio.sleep(0.05)
