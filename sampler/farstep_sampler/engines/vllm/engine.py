"""The vLLM engine: vLLM's own batching and kernels behind the interface of the torch engine, for fleets of GPUs.

vLLM computes in processes of its own (`process`); here is what becomes of jobs: each is a task on the event loop
(`job`). It needs an environment in which vLLM is installed, and imports nothing of it before that is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import cast

from vllm.inputs.engine import tokens_input
from vllm.logprobs import FlatLogprobs
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from farstep_model.adapter import Adapter
from farstep_model.load import BaseModel, load_skeleton
from farstep_model.lora import LoraLayers
from farstep_proto.errors import ApiError, Internal, InvalidInput
from farstep_sampler.account import NOBODY, Account, Charge, free_of_charge, usage_of
from farstep_sampler.engines.base import not_finite, stopped
from farstep_sampler.engines.shared_time import SharedTime
from farstep_sampler.engines.vllm.adapters import SERVED_KINDS, VllmAdapters
from farstep_sampler.engines.vllm.job import VllmJob, Weights
from farstep_sampler.engines.vllm.process import VllmProcess, VllmSettings, built_for, default_dtype, parse_options
from farstep_sampler.engines.vllm.request import check_job, is_restricted, probe_params, sampled_logprobs
from farstep_sampler.in_flight import Sampling
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult

log = logging.getLogger(__name__)

PATIENCE_S = 60.0


class VllmEngine:
    """An `Engine`.

    Args:
        layers: of a skeleton: vLLM reads the weights itself.
        patience_s: how long vLLM may answer nothing before it counts as dead.
        charge: is told what each job used, when it has ended in whatever way.
    """

    name = "vllm"

    def __init__(
        self,
        layers: LoraLayers,
        settings: VllmSettings,
        *,
        patience_s: float = PATIENCE_S,
        charge: Charge = free_of_charge,
    ) -> None:
        self.layers = layers
        self._charge = charge
        self._clock = SharedTime()
        self.num_slots = settings.num_slots
        self.device = built_for()
        self._settings = settings
        self._patience_s = patience_s
        self._adapters = VllmAdapters(max_rank=settings.max_rank)
        self._process: VllmProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._reports_whole: bool | None = None  # not known yet
        self._in_flight: dict[asyncio.Task[None], Sampling] = {}

    def start(self) -> None:
        self._adapters.open()
        try:
            self._process = VllmProcess.start(self._settings)
        except BaseException:
            self._adapters.close()
            raise
        self._watcher = asyncio.create_task(self._watch(self._process), name="vllm-watch")

    @property
    def is_alive(self) -> bool:
        watching = self._watcher is not None and not self._watcher.done()
        return watching and self._process is not None and self._process.is_alive

    async def close(self) -> None:
        assert self._process is not None
        assert self._watcher is not None
        self._watcher.cancel()
        await asyncio.gather(self._watcher, return_exceptions=True)
        await self._fail_all()
        await self._process.close()
        self._adapters.close()

    def sampling(
        self, job: SampleJob, *, slot: int, version: int = 0, streams: bool = False, account: Account = NOBODY
    ) -> Sampling:
        if not self.is_alive:
            raise stopped()
        assert self._process is not None
        check_job(job)

        async def switch(slot: int, version: int) -> None:
            await running.switch(Weights(self._adapters.get(slot), version))

        def end() -> None:
            task.cancel()

        sampling = Sampling(end=end, switch=switch)
        running = VllmJob(
            self._process.llm,
            job,
            Weights(self._adapters.get(slot), version),
            watch=sampling.push if streams else None,
            decode=self.layers.base.text,
            asker=account.asker,
        )
        task = asyncio.create_task(self._charged(account, job, running, sampling))
        self._in_flight[task] = sampling
        task.add_done_callback(lambda done: self._in_flight.pop(done, None))
        return sampling

    async def sample(self, job: SampleJob, *, slot: int, version: int = 0) -> SampleResult:
        async with self.sampling(job, slot=slot, version=version) as sampling:
            return await sampling.result()

    async def load(self, slot: int, adapter: Adapter) -> None:
        if not self.is_alive:
            raise stopped()
        assert self._process is not None
        await self._adapters.load(self._process.llm, slot, adapter)

    async def _charged(self, account: Account, job: SampleJob, running: VllmJob, sampling: Sampling) -> None:
        """Runs a job and tells what it used, with the time shared by the samples that are under way together."""
        with self._clock.shared_by(job.num_samples) as share:
            try:
                await self._run(job, running, sampling)
            finally:
                used = usage_of(
                    account,
                    num_samples=running.num_finished,
                    tokens_prompted=len(job.prompt),
                    tokens_sampled=running.num_sampled,
                    seconds=share(),
                )
                self._charge(used)

    async def _run(self, job: SampleJob, running: VllmJob, sampling: Sampling) -> None:
        try:
            if is_restricted(job):
                await self._check_reporting()
            sampling.settle(await running.run())
        except (EngineDeadError, EngineGenerateError) as error:
            log.error("a request to vLLM failed: %r", error)
            sampling.settle(stopped() if isinstance(error, EngineDeadError) else _failed(error))
        except ApiError as error:
            if error.error_class == not_finite().error_class:
                await self._contain(running)
            sampling.settle(error)
        except ValueError as error:  # how vLLM refuses a request
            sampling.settle(InvalidInput(f"vLLM refuses this request: {error}"))
        except Exception as error:  # our own mistake; nobody may wait for it for ever
            log.exception("a job on vLLM broke")
            sampling.settle(_failed(error))

    async def _check_reporting(self) -> None:
        """Finds out, once, whether `worker` has taken hold in this vLLM.

        Raises:
            InvalidInput: it has not, and log-probabilities of a restricted choice would be wrong.
        """
        assert self._process is not None
        if self._reports_whole is None:
            async for output in self._process.llm.generate(tokens_input([0]), probe_params(), "probe"):
                self._reports_whole = sampled_logprobs(cast(FlatLogprobs, output.outputs[0].logprobs), 0)[0][0] < 0
        if not self._reports_whole:
            raise InvalidInput(
                "this vLLM gives log-probabilities among what top_k, top_p and min_p leave, not of the whole choice",
                field="params",
                hint="leave them out, or see docs/vllm.md for the versions of vLLM that are known",
            )

    async def _contain(self, running: VllmJob) -> None:
        """Keeps weights that compute nothing finite from the requests that come after them."""
        assert self._process is not None
        if running.weights.adapter is not None:
            self._adapters.mark_broken(running.weights.adapter)
        with contextlib.suppress(EngineDeadError):
            await self._process.clean_cache()

    async def _watch(self, process: VllmProcess) -> None:
        await process.watch(patience_s=self._patience_s)
        await self._fail_all()

    async def _fail_all(self) -> None:
        for task, sampling in list(self._in_flight.items()):
            sampling.settle(stopped())
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)


def make_vllm_engine(
    model: str,
    *,
    device: str,
    num_slots: int,
    max_rank: int,
    max_rows: int,
    cache_tokens: int,
    options: str,
    patience_s: float = PATIENCE_S,
    charge: Charge = free_of_charge,
) -> tuple[BaseModel, VllmEngine]:
    """What is known of a model, and an engine for it that has not started.

    Args:
        device: "auto", or what vLLM was built for.
        options: JSON, as `parse_options` takes it.

    Raises:
        NotFound, InvalidInput: no such model, or a setting that vLLM does not take.
    """
    if device not in ("auto", built_for()):
        raise InvalidInput(f"this vLLM is built for {built_for()!r}, not {device!r}", field="device")
    base = load_skeleton(model, dtype=default_dtype())
    layers = LoraLayers.install(base)
    targets = layers.targets
    settings = VllmSettings(
        path=base.path,
        dtype=base.dtype,
        max_seq_len=min(base.max_seq_len, cache_tokens or base.max_seq_len),
        num_slots=num_slots,
        max_rank=max_rank,
        max_rows=max_rows,
        cache_tokens=cache_tokens,
        lora_modules=tuple(sorted({t.name.rpartition(".")[2] for t in targets if t.kind in SERVED_KINDS})),
        options=parse_options(options),
    )
    settings.engine_args()  # a wrong option shows before anything is loaded
    return base, VllmEngine(layers, settings, patience_s=patience_s, charge=charge)


def _failed(error: Exception) -> Internal:
    cause = error.__cause__ or error
    return Internal(f"vLLM failed: {type(cause).__name__}: {cause}", hint="the sampler's log has more")
