"""Passes over data: checked, cut into requests, submitted, and counted when their outputs arrive.

A pass with a loss of the user's own is two operations with seqs in a row; what fails between them leaves no gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Literal

from farstep import _convert
from farstep._custom_loss import CustomLoss, asking_for_logprobs, evaluate, require_torch
from farstep._meter import RunMeter, succeeded
from farstep._split import split
from farstep._submission import RunSubmitter
from farstep.future import Future
from farstep.results import ForwardBackwardOutput
from farstep.types import Datum
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2, training_pb2

AdapterChoice = Literal["current", "base", "start"]


class Passes:
    def __init__(
        self,
        run: training_pb2.Run,
        submitter: RunSubmitter,
        meter: RunMeter,
        *,
        max_request_bytes: int,
        max_datum_bytes: int,
    ) -> None:
        self._run = run
        self._submitter = submitter
        self._meter = meter
        self._max_request_bytes = max_request_bytes
        self._max_datum_bytes = max_datum_bytes

    def submit(
        self,
        verb: str,
        data: Iterable[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float] | None,
        *,
        adapter: AdapterChoice = "current",
    ) -> Coroutine[Any, Any, Future[ForwardBackwardOutput]]:
        """Checks the data and takes the seq now; the coroutine submits."""
        is_backward = verb == Verb.FORWARD_BACKWARD
        request = self._request(data, loss_fn, loss_fn_config, adapter=adapter, backward=is_backward)
        num_tokens = _convert.num_tokens(request)

        def on_arrival(operation: operations_pb2.Operation) -> None:
            if succeeded(operation):
                output = operation.forward_backward
                self._meter.count_pass(output.loss, output.metrics, num_tokens=num_tokens)

        return self._submitter.submit(
            verb,
            self._split(request),
            _convert.forward_backward_output,
            on_arrival=on_arrival if is_backward else None,
        )

    def submit_custom(
        self, data: Iterable[Datum], loss_fn: CustomLoss
    ) -> Coroutine[Any, Any, Future[ForwardBackwardOutput]]:
        """Checks the data and takes both seqs now; the coroutine does the rest."""
        require_torch()
        data = list(data)
        targets = asking_for_logprobs(data)
        bodies = self._split(self._request(targets))
        return self._submit_custom(data, targets, loss_fn, bodies, seqs=self._submitter.take(2))

    async def _submit_custom(
        self, data: list[Datum], targets: list[Datum], loss_fn: CustomLoss, bodies: list[bytes], *, seqs: range
    ) -> Future[ForwardBackwardOutput]:
        first, second = seqs
        decode = _convert.forward_backward_output
        try:
            output = await (await self._submitter.submit(Verb.FORWARD, bodies, decode, seq=first))
            custom = await asyncio.to_thread(evaluate, loss_fn, data, targets, output.loss_fn_outputs)
            request = self._request(custom.weighted(targets))
            bodies = self._split(request)
        except BaseException:  # a cancelled wait as well
            await self._submitter.give_up(second)
            raise
        num_tokens = _convert.num_tokens(request)

        def decode_second(operation: operations_pb2.Operation) -> ForwardBackwardOutput:
            output = decode(operation)
            return ForwardBackwardOutput(custom.loss, custom.all_metrics(output.metrics), output.loss_fn_outputs)

        def on_arrival(operation: operations_pb2.Operation) -> None:
            if succeeded(operation):
                metrics = custom.all_metrics(operation.forward_backward.metrics)
                self._meter.count_pass(custom.loss, metrics, num_tokens=num_tokens)

        return await self._submitter.submit(
            Verb.FORWARD_BACKWARD, bodies, decode_second, seq=second, on_arrival=on_arrival
        )

    def _request(
        self,
        data: Iterable[Datum],
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
        *,
        adapter: AdapterChoice = "current",
        backward: bool = True,
    ) -> training_pb2.ForwardRequest:
        return _convert.forward_request(
            data,
            loss_fn,
            loss_fn_config,
            vocab_size=self._run.vocab_size,
            max_seq_len=self._run.max_seq_len,
            adapter=adapter,
            backward=backward,
            has_value_head=self._run.lora.value_head,
        )

    def _split(self, request: training_pb2.ForwardRequest) -> list[bytes]:
        return split(request, max_request_bytes=self._max_request_bytes, max_datum_bytes=self._max_datum_bytes)
