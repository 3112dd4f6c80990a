"""When each operation came in, and what becomes of it in the telemetry: a trace if it ran, a count if it did not.

Invariant: an operation that was noted is told of once, and is forgotten then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.operations import split_operation_id
from farstep_worker.telemetry import Telemetry
from farstep_worker.torch_thread import Ended


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Of an operation that has not ended: when its last part was entered (monotonic), and what decoding took."""

    verb: str
    entered: float
    decode_s: float


class Arrivals:
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._arrivals: dict[str, _Arrival] = {}

    def note(self, operation_id: str, verb: str, *, entered: float, decode_s: float) -> None:
        """An operation, or a further part of it, came in."""
        earlier = self._arrivals.get(operation_id)
        before_s = 0.0 if earlier is None else earlier.decode_s
        self._arrivals[operation_id] = _Arrival(verb, entered, before_s + decode_s)

    def ran(self, ended: Ended, operation: operations_pb2.Operation, *, encode_s: float) -> None:
        """It ran, well or not, and its outcome can be had."""
        work = ended.work
        arrival = self._arrivals.pop(work.operation_id)
        total_s = time.monotonic() - arrival.entered
        trace = pb.OperationTrace(
            operation_id=work.operation_id,
            verb=arrival.verb,
            failed=operation.state == operations_pb2.OPERATION_STATE_FAILED,
            submitted_at=time.time() - total_s,
            queued_s=ended.started - arrival.entered,
            phases_s={"decode": arrival.decode_s, **ended.outcome.phases_s, "encode": encode_s},
            computed_s=ended.ended - ended.started,
            total_s=total_s,
            num_tokens=work.call.num_tokens,
            fused_with=[wanted for wanted in ended.together if wanted != work.operation_id],
        )
        self._telemetry.record(work.run_id, trace)

    def dropped(self, operation_id: str, outcome: str) -> None:
        """It will not run."""
        self._telemetry.count(self._arrivals.pop(operation_id).verb, outcome)

    def of_run(self, run_id: str) -> list[str]:
        """Ids of its operations that have not been told of."""
        return [wanted for wanted in self._arrivals if split_operation_id(wanted)[0] == run_id]

    def forget(self, operation_id: str) -> None:
        """Its other parts will not come."""
        del self._arrivals[operation_id]
