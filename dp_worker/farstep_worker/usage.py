"""What one operation used of the trainer: the time of the thread that computes, and tokens by what became of them."""

from __future__ import annotations

from farstep_proto.v1 import control_pb2, operations_pb2
from farstep_worker.submission import Pass
from farstep_worker.torch_thread import Ended


def trainer_usage(project: str, ended: Ended, operation: operations_pb2.Operation) -> control_pb2.Usage:
    """Time counts however it ended, tokens where it succeeded. What shared a batch shares its time by tokens."""
    work = ended.work
    used = control_pb2.Usage(
        project=project,
        run_id=work.run_id,
        num_operations=1,
        trainer_seconds=(ended.ended - ended.started) * ended.share,
    )
    if isinstance(work.call, Pass) and operation.state == operations_pb2.OPERATION_STATE_SUCCEEDED:
        if work.call.backward:
            used.tokens_trained = work.call.num_tokens
        else:
            used.tokens_forward = work.call.num_tokens
    return used
