"""Whether a run's newest published policy is what its weights are now.

Told by sequence numbers, since operations run in their order: a publication is fresh as long as nothing that changes
weights was submitted after it. A change that failed counts as one; then a publication too many is made.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from farstep._address import Address
from farstep._loop import awaiting, blocking
from farstep._operation_calls import OperationCalls
from farstep.errors import InvalidInputError
from farstep.future import Future
from farstep.results import SaveWeightsResponse
from farstep.sampling import Pin, SamplingClient, Target, open_sampling_client
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2, training_pb2

SERVED_WITHIN_S = 600.0
_CHANGING = frozenset({Verb.OPTIM_STEP, Verb.LOAD_STATE, Verb.RESET})


class Freshness:
    def __init__(self) -> None:
        self._changed_seq = 0
        self._published_seq = -1
        self._version = 0

    def submitted(self, verb: str, seq: int) -> None:
        if verb in _CHANGING:
            self._changed_seq = max(self._changed_seq, seq)

    def published(self, operation: operations_pb2.Operation) -> None:
        """Takes note of a publication that succeeded."""
        response = operation.save_weights
        seq = int(operation.operation_id.rpartition(":")[2])
        if response.HasField("policy_version") and seq > self._published_seq:
            self._published_seq, self._version = seq, response.policy_version

    @property
    def version(self) -> int | None:
        """The version that has the present weights; None where none is known to."""
        return self._version if self._published_seq > self._changed_seq else None


class FreshSampling(OperationCalls):
    _freshness: Freshness
    _run: training_pb2.Run

    def _fresh_sampling_client(self, *, pin: Pin = "exact") -> Coroutine[Any, Any, SamplingClient]:
        """A client pinned to the run's weights as they are after all operations submitted so far.

        Publishes where anything was submitted since the last publication that may have changed them; else it is that
        publication's version again.

        Raises:
            PublishTimeoutError: a RuntimeError; after 600 s no replica serves it.
        """
        if pin not in ("min", "exact"):
            raise InvalidInputError(f"{pin!r} is neither 'min' nor 'exact'", field="pin")
        return self._sampling_client_of(self._freshness.version, pin)

    fresh_sampling_client = blocking(_fresh_sampling_client)
    fresh_sampling_client_async = awaiting(_fresh_sampling_client)

    def _sampling_client_of(self, version: int | None, pin: Pin) -> Coroutine[Any, Any, SamplingClient]:
        sampler = self._paired_sampler()
        if version is None:
            return self._published(self._publish("", None), sampler, pin)
        return self._serving(version, sampler, pin)

    async def _published(
        self, submission: Coroutine[Any, Any, Future[SaveWeightsResponse]], sampler: Address, pin: Pin
    ) -> SamplingClient:
        version = (await (await submission)).policy_version
        assert version is not None
        return await self._serving(version, sampler, pin)

    async def _serving(self, version: int, sampler: Address, pin: Pin) -> SamplingClient:
        target = Target(run_id=self.run_id, policy_version=version, pin=pin, base_model=self._run.base_model)
        client = await open_sampling_client(sampler, self._trainer.key, target)
        try:
            await client._wait_until_served(SERVED_WITHIN_S)
        except BaseException:
            await client._close()
            raise
        return client

    def _publish(self, name: str, ttl_seconds: int | None) -> Coroutine[Any, Any, Future[SaveWeightsResponse]]:
        raise NotImplementedError

    def _paired_sampler(self) -> Address:
        raise NotImplementedError
