"""What came of an operation, and the message that says so.

Invariant: an outcome always has a message, if only one that says why there is no better.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from google.protobuf.message import Message

from farstep_proto.errors import ModelError, error_from_exception
from farstep_proto.metrics import mean_loss
from farstep_proto.tensors import tensor_to_proto
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.feed import Policy
from farstep_worker.gradients import PassResult
from farstep_worker.submission import Pass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An operation's end, the policy to offer to samplers, if it published one, and where its time went.

    `encode` makes its message. That is for whoever has the time for it, on any thread, but the one that computes.
    """

    encode: Callable[[], operations_pb2.Operation]
    policy: Policy | None = None
    phases_s: Mapping[str, float] = field(default_factory=dict)
    is_fused: bool = False

    @property
    def operation(self) -> operations_pb2.Operation:
        """The message, made anew; never raises."""
        try:
            return self.encode()
        except Exception as error:
            log.exception("an outcome cannot be encoded")
            return failed(error).encode()


def failed(error: Exception) -> Outcome:
    state = operations_pb2.OPERATION_STATE_FAILED
    operation = operations_pb2.Operation(state=state, error=error_from_exception(error))
    return Outcome(lambda: operation)


def succeeded(*, policy: Policy | None = None, **outcome: Message) -> Outcome:
    """`outcome` is the one field of `Operation` that the verb answers with."""
    operation = _success(**outcome)
    return Outcome(lambda: operation, policy)


def _success(**outcome: Message) -> operations_pb2.Operation:
    operation = operations_pb2.Operation(state=operations_pb2.OPERATION_STATE_SUCCEEDED)
    for name, message in outcome.items():
        getattr(operation, name).CopyFrom(message)
    return operation


def computed(call: Pass, result: PassResult) -> Outcome:
    """Of a pass; its message is large, and made when somebody asks for it."""
    return Outcome(partial(_encode_pass, call, result))


def _encode_pass(call: Pass, result: PassResult) -> operations_pb2.Operation:
    return _success(forward_backward=_to_proto(call, result))


def out_of_memory(error: Exception) -> ModelError:
    """Of anything but a pass, which says it itself."""
    return ModelError(
        f"the device has too little memory for this: {error}",
        error_class="OutOfMemoryError",
        hint="choose a lower rank, train fewer runs on this trainer, or start it with a lower --token-budget",
    )


def _to_proto(call: Pass, result: PassResult) -> pb.ForwardBackwardOutput:
    output = call.spec.output
    return pb.ForwardBackwardOutput(
        loss=mean_loss(result.metrics, normalizer=call.config.get("normalizer", 1.0)),
        metrics=result.metrics,
        loss_fn_outputs=[pb.DatumOutput(fields={output: tensor_to_proto(array)}) for array in result.outputs],
    )
