"""What a new process finds out of a run that an old one left: which operations were taken, and what came of them."""

from __future__ import annotations

import time
from typing import Any

from farstep import TrainingClient, _convert
from farstep.errors import FarstepError, NotFoundError, RemoteOpError
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2
from tests.chaos import data
from tests.chaos.diary import Diary, Event, Known
from tests.chaos.programs import Call, Custom, Forward, ForwardBackward, Load, Program, Publish, Save, Step

_LOOK_AGAIN_S = 0.05
_FULL_DISK = "StorageFullError"


def settle(program: Program, pages: Diary, known: Known, trainer: TrainingClient, index: int) -> None:
    """Writes down what was taken since the diary's last word, `index` being the call in question; then all results."""
    for seq in range(known.last_seq + 1, next_seq(trainer)):
        operation = look(trainer, seq)
        if _is_no_call(operation, program.calls[index]):
            pages.write("skipped", seq=seq, verb=operation.verb)
            known.skipped.append(seq)
        else:
            pages.write("accepted", index=index, seq=seq)
            known.seqs.setdefault(index, []).append(seq)
    for taken, seqs in sorted(known.seqs.items()):
        if taken not in known.results:
            facts = facts_of(program.calls[taken], result_at(program.calls[taken], trainer, seqs[-1]))
            known.results[taken] = facts
            pages.write("result", index=taken, result=facts)


def result_at(call: Call, trainer: TrainingClient, seq: int) -> Any:
    """The result of an operation that another process submitted, or the error that it ended with."""
    operation = look(trainer, seq)
    while operation.state in (operations_pb2.OPERATION_STATE_QUEUED, operations_pb2.OPERATION_STATE_RUNNING):
        time.sleep(_LOOK_AGAIN_S)
        operation = look(trainer, seq)
    error = _convert.outcome_error(operation)
    return error if error is not None else _decoded(call, operation)


def result_of(future: Any) -> Any:
    """A future's result, or the error that the operation ended with."""
    error = future.exception()
    return future.result() if error is None else error


def facts_of(call: Call, result: Any) -> Event:
    """What is compared.

    Raises:
        FarstepError: `result` itself, where it is one that no program has to expect.
    """
    if isinstance(result, FarstepError):
        if isinstance(result, RemoteOpError) and result.error_class == "CancelledError" and isinstance(call, Forward):
            return {"cancelled": True}
        if is_full_disk(result) and isinstance(call, Save | Publish):
            return {"starved": True}
        raise result
    match call:
        case ForwardBackward() | Forward() | Custom():
            return data.passed(result)
        case Step():
            return data.stepped(result)
        case Save() | Publish():
            return {"path": result.path, "version": result.policy_version}
        case Load():
            return {"step": result.step}
        case _:
            return {}


def is_full_disk(error: Any) -> bool:
    names = (type(error).__name__, getattr(error, "error_class", ""))
    return isinstance(error, FarstepError) and _FULL_DISK in names


def next_seq(trainer: TrainingClient) -> int:
    return trainer._submitter._next_seq


def seq_of(operation_id: str) -> int:
    return int(operation_id.rpartition(":")[2])


def look(trainer: TrainingClient, seq: int) -> operations_pb2.Operation:
    """An operation as it stands; one without a verb where the server has none of that number."""
    from farstep._loop import run

    try:
        return run(trainer._trainer.look(f"{trainer.run_id}:{seq}"))
    except NotFoundError:
        return operations_pb2.Operation()


def _is_no_call(operation: operations_pb2.Operation, call: Call) -> bool:
    """A seq that was given up, the first half of a custom loss, or an attempt for which there was no room."""
    if operation.verb in (Verb.SKIP, "") or (operation.verb == Verb.FORWARD and isinstance(call, Custom)):
        return True
    error = _convert.outcome_error(operation) if operation.HasField("error") else None
    return is_full_disk(error)


def _decoded(call: Call, operation: operations_pb2.Operation) -> Any:
    match call:
        case ForwardBackward() | Forward() | Custom():
            return _convert.forward_backward_output(operation)
        case Step():
            return _convert.optim_step_response(operation)
        case Save() | Publish():
            return _convert.save_weights_response(operation)
        case Load():
            return _convert.load_weights_response(operation)
        case _:
            return None
