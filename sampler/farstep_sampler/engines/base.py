"""What a replica asks of an engine, whichever computes: jobs sampled with the weights in numbered slots.

Slot 0 is the base model; the others are loaded with adapters, and a slot is loaded anew only when no job uses it.
An engine knows nothing of versions, gates or HTTP; a version is a number that its tokens are labelled with.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from farstep_model.adapter import Adapter
from farstep_model.lora import LoraLayers
from farstep_proto.errors import Internal, ModelError
from farstep_sampler.account import NOBODY, Account
from farstep_sampler.in_flight import Sampling
from farstep_sampler.request import SampleJob
from farstep_sampler.result import SampleResult, SampleSequence, Topk


class Engine(Protocol):
    """Every method is for the event loop on which `start` was called.

    `name` and `device` are what `ServerInfo` says, `layers` are those that adapters are made for, `num_slots` counts
    the adapters that it holds at a time.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def layers(self) -> LoraLayers: ...

    @property
    def num_slots(self) -> int: ...

    def start(self) -> None:
        """Makes it ready to sample; may take long. Raises InvalidInput when the model cannot be served."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it can still sample; one that has stopped stays so."""
        ...

    async def close(self) -> None:
        """Ends it; jobs that are not finished fail."""
        ...

    def sampling(
        self, job: SampleJob, *, slot: int, version: int = 0, streams: bool = False, account: Account = NOBODY
    ) -> Sampling:
        """Starts a job, to be watched (`streams`), switched or waited for in a block that it does not outlive.

        Args:
            account: who asks: askers share no computed prompts, and take turns where the engine has turns.

        Raises:
            Internal: the engine has stopped.
        """
        ...

    async def sample(self, job: SampleJob, *, slot: int, version: int = 0) -> SampleResult:
        """Runs a job; cancelling the wait frees what it holds.

        Raises:
            ApiError: the job failed.
        """
        ...

    async def load(self, slot: int, adapter: Adapter) -> None:
        """Puts an adapter into a slot that no job uses, in the place of what was there.

        Raises:
            InvalidInput: the engine cannot take it.
        """
        ...


def no_tokens(job: SampleJob) -> SampleSequence:
    """The continuation of a job that looks at its prompt only."""
    shape = (0, job.num_topk)
    topk = Topk(np.zeros(shape, np.int32), np.zeros(shape, np.float32)) if job.num_topk else None
    return SampleSequence([], [], "length", topk, [])


def not_finite() -> ModelError:
    return ModelError(
        "the model's logits are not finite with these weights",
        error_class="FloatingPointError",
        hint="training has probably diverged: sample an earlier policy, or lower the learning rate",
    )


def stopped() -> Internal:
    """For jobs whose engine is gone; 503, so that a router takes them to another replica."""
    error = Internal("the engine has stopped", hint="restart the sampler; its log has the reason")
    error.status = 503
    return error
