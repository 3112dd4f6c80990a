"""What runs inside vLLM's own worker processes, which import this module by the name of `WorkerExtension`.

Importing it does two things that vLLM has no setting for, and is therefore for those processes alone:

- the process ends when the sampler does, however the sampler died; without a worker the rest of vLLM ends too;
- log-probabilities are reported under the whole distribution after temperature, as the torch engine and the trainer
  have them; vLLM's own would be renormalised over what top-k, top-p and min-p leave.
"""

from __future__ import annotations

import os
import select
import threading

import torch
from torch import Tensor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from farstep_sampler.engines.vllm import SAMPLER_PID


class WorkerExtension:
    """Mixed into vLLM's worker, whose `model_runner` it finds there; its methods are called by name."""

    model_runner: GPUModelRunner

    def clean_cache(self) -> None:
        """Zeroes what is not finite: on a CPU, attention multiplies whole blocks, the unused parts of them by zero."""
        for cache in self.model_runner.kv_caches:
            if cache.device.type == "cpu":
                cache.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def end_with(pid: int) -> None:
    """Ends this process, at once and from any state, when another ends."""
    try:
        sampler = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        select.select([sampler], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-sampler", daemon=True).start()


def report_whole_distribution() -> None:
    """Has vLLM's sampler report log-probabilities before anything is excluded from the choice."""
    choose = Sampler.sample

    def sample(
        self: Sampler, logits_RV: Tensor, metadata: SamplingMetadata, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor | None]:
        wanted = metadata.max_num_logprobs is not None
        logprobs_RV = torch.log_softmax(_tempered(logits_RV, metadata), dim=-1) if wanted else None
        tokens_R, _ = choose(self, logits_RV, metadata, *args, **kwargs)
        return tokens_R, logprobs_RV

    Sampler.sample = sample


def _tempered(logits_RV: Tensor, metadata: SamplingMetadata) -> Tensor:
    """Greedy rows are as at temperature 1."""
    if metadata.temperature is None:
        return logits_RV
    return logits_RV / torch.where(metadata.temperature == 0, 1.0, metadata.temperature)[:, None]


if SAMPLER_PID in os.environ:
    end_with(int(os.environ[SAMPLER_PID]))
    report_whole_distribution()
