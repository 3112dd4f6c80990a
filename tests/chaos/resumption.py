"""What a new process finds out of a run that an old one left: which operations were taken, and what came of them."""

from __future__ import annotations

import itertools
from typing import Any

from farstep import TrainingClient
from farstep.errors import FarstepError, RemoteOpError, UnknownRequestError
from farstep_proto.paths import Verb
from tests.chaos import data
from tests.chaos.diary import Diary, Event, Known
from tests.chaos.programs import Call, Custom, Forward, ForwardBackward, Load, Program, Publish, Save, Step

_FULL_DISK = "StorageFullError"


def settle(program: Program, pages: Diary, known: Known, trainer: TrainingClient, index: int) -> None:
    """Writes down what was taken since the diary's last word, `index` being the call in question; then all results."""
    for seq in itertools.count(known.last_seq + 1):
        future = future_at(trainer, seq)
        if future is None:
            break
        if _is_no_call(future, program.calls[index]):
            pages.write("skipped", seq=seq, verb=future.verb)
            known.skipped.append(seq)
        else:
            pages.write("accepted", index=index, seq=seq)
            known.seqs.setdefault(index, []).append(seq)
    for taken, seqs in sorted(known.seqs.items()):
        if taken not in known.results:
            future = future_at(trainer, seqs[-1])
            assert future is not None, f"operation {seqs[-1]} was taken, and is not known any more"
            facts = facts_of(program.calls[taken], result_of(future))
            known.results[taken] = facts
            pages.write("result", index=taken, result=facts)


def future_at(trainer: TrainingClient, seq: int) -> Any:
    """Of an operation that whatever process submitted; None where there is none of that number."""
    try:
        return trainer.future(f"{trainer.run_id}:{seq}")
    except UnknownRequestError:
        return None


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


def seq_of(operation_id: str) -> int:
    return int(operation_id.rpartition(":")[2])


def _is_no_call(future: Any, call: Call) -> bool:
    """A seq that was given up, the first half of a custom loss, or an attempt for which there was no room."""
    if future.verb == Verb.SKIP or (future.verb == Verb.FORWARD and isinstance(call, Custom)):
        return True
    return isinstance(call, Save | Publish) and is_full_disk(result_of(future))
