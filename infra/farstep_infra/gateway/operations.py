"""Operations of a training run: submitted under the trainer's seq that their Tinker seq stands for.

Whatever a seq is given for, something is entered for it, be it a `skip`: those behind it never wait for what was
refused. A refusal is the future's failure, not the submission's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import Message

from farstep_infra.gateway.channel import Submission
from farstep_infra.gateway.failures import Gone, category_of, failure_of
from farstep_infra.gateway.gateway import Gateway
from farstep_infra.gateway.request_ids import RequestId
from farstep_infra.gateway.results import Failed, Pending, Promised, Result
from farstep_infra.gateway.seqs import RunLine
from farstep_infra.gateway.server_http import NotNow, Relayed
from farstep_infra.gateway.whereabouts import RunPlace
from farstep_proto import paths
from farstep_proto.errors import ApiError, Conflict, InvalidInput, NotFound
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2, training_pb2
from farstep_serving.keys import Caller

WAKE_S = 40.0
MAX_AHEAD = 65_536  # of those that are still to come before it
_MAX_TIMES = 5


@dataclass(frozen=True, slots=True)
class Call:
    """What an operation asks of the trainer: a verb and its message, in parts where that is large."""

    verb: str
    parts: Sequence[bytes]

    @classmethod
    def of(cls, verb: str, message: Message) -> Call:
        return cls(verb, [encoded(message)])


def encoded(message: Message) -> bytes:
    """The same message is the same bytes: a submission that is repeated is known by them."""
    return bytes(message.SerializeToString(deterministic=True))


async def promise(
    gateway: Gateway, wanted: RequestId, make: Callable[[], Awaitable[Call]], *, caller: Caller
) -> Promised:
    """Submits what `make` says, or gives the seq up where that is refused; a repetition changes nothing.

    Raises:
        NotFound: no such model.
        NotNow: the trainer is away for too long.
    """
    place = await gateway.whereabouts.run(wanted.owner, caller=caller, wait_s=WAKE_S)
    promised = Promised(request_id=str(wanted), model_id=wanted.owner)
    if gateway.refusals.find(str(wanted)) is not None:
        return promised
    try:
        await _enter(gateway, place, wanted.seq, await make())
    except ApiError as error:
        if isinstance(error, NotNow | _Repeated) or category_of(error.status) != "user":
            raise
        gateway.refusals.note(str(wanted), failure_of(error.to_proto()))
        if not isinstance(error, _Overtaken):
            await _enter(gateway, place, wanted.seq, Call.of(Verb.SKIP, training_pb2.SkipRequest()))
    return promised


@dataclass(frozen=True, slots=True)
class Ended:
    """An operation that succeeded; `on_told` is called when the client has its result."""

    operation: operations_pb2.Operation
    on_told: Callable[[], None]


async def outcome_of(gateway: Gateway, wanted: RequestId, *, caller: Caller, wait_s: float) -> Ended | Result:
    """What the trainer says of an operation; a result already where it says nothing, or that it failed.

    Raises:
        NotFound: the caller has no such model.
        Gone: the operation is no longer known.
    """
    place = await gateway.whereabouts.run(wanted.owner, caller=caller, wait_s=WAKE_S)
    if (failure := gateway.refusals.find(str(wanted))) is not None:
        return Failed(failure)
    line = await gateway.seqs.of(place.run_id)
    operation_id = _operation_id(place, line.map.ours(wanted.seq))
    channel = gateway.channels.of(place.trainer_url)
    try:
        operation = await channel.outcome(operation_id, wait_s=wait_s)
    except NotNow as error:
        return Pending("paused_capacity", error.message)
    except NotFound as error:
        raise Gone(f"request {wanted} is not known, or no longer", field="request_id") from error
    if operation is None:
        return Pending("paused_capacity", channel.trouble) if channel.trouble else Pending()
    on_told = partial(channel.fetched, operation_id)
    if operation.HasField("error"):
        return Failed(failure_of(operation.error), on_told)
    if operation.verb == Verb.SKIP:
        return Failed(gateway.refusals.told(str(wanted)), on_told)
    return Ended(operation, on_told)


class _Repeated(InvalidInput):
    """Something else was submitted under that seq before, and stays what it is."""


class _Overtaken(Conflict):
    """Another client has the seq, and later ones were submitted already: there is no place for it."""


async def _enter(gateway: Gateway, place: RunPlace, seq: int, call: Call) -> None:
    line = await gateway.seqs.of(place.run_id)
    if line.last is not None and seq > line.last + MAX_AHEAD:
        raise InvalidInput(f"{seq} is too far ahead of {line.last}", field="seq_id")
    if line.comes_early(seq):
        async with line.lock:
            if line.comes_early(seq):
                await _look_for_others(gateway, place, line)
    is_repeated = line.has(seq)
    line.note(seq)
    try:
        await _insist(gateway, place, line, seq, call, is_repeated=is_repeated)
    except _Overtaken:
        raise
    except BaseException:  # also where the client has hung up
        if not is_repeated:
            line.take_back(seq)
        raise


async def _insist(gateway: Gateway, place: RunPlace, line: RunLine, seq: int, call: Call, *, is_repeated: bool) -> None:
    for _ in range(_MAX_TIMES):
        ours = line.map.ours(seq)
        try:
            return await _submit(gateway, place, ours, call)
        except Relayed as error:
            if error.status == NotFound.status:
                gateway.whereabouts.forget(place.run_id)
            if error.status != Conflict.status:
                raise
            if is_repeated:
                raise _Repeated(f"another operation has the number {seq}", field="seq_id") from error
            await _make_way(gateway, place, line, seq, taken=ours)
    raise _Overtaken(f"another client takes the numbers of {place.run_id} as fast as they are given", field="seq_id")


async def _submit(gateway: Gateway, place: RunPlace, ours: int, call: Call) -> None:
    path = f"{paths.of(paths.VERB, run_id=place.run_id, verb=call.verb)}?seq={ours}"
    submission = Submission(
        _operation_id(place, ours),
        path,
        call.parts,
        place.project,
        wake=lambda wait_s: gateway.whereabouts.wake(place.run_id, wait_s=wait_s),
    )
    await gateway.channels.of(place.trainer_url).submit(submission)


async def _look_for_others(gateway: Gateway, place: RunPlace, line: RunLine) -> None:
    """Before a seq is entered whose predecessors are still to come: has another client taken their numbers?"""
    assert line.last is not None
    following = line.last + 1
    first_free = await _first_free(gateway, place)
    if first_free > line.map.ours(following):
        await gateway.seqs.shift(place.run_id, line, following, first_free)


async def _make_way(gateway: Gateway, place: RunPlace, line: RunLine, seq: int, *, taken: int) -> None:
    """Another client has that number: this operation comes after all that were received."""
    async with line.lock:
        if line.map.ours(seq) != taken:
            return  # somebody else of ours has found out
        if line.last is not None and line.last > seq:
            raise _Overtaken(
                f"another client of run {place.run_id} took the place of this operation, and later ones came already",
                field="seq_id",
                hint="let one client finish what it has submitted before another begins",
            )
        await gateway.seqs.shift(place.run_id, line, seq, await _first_free(gateway, place))


async def _first_free(gateway: Gateway, place: RunPlace) -> int:
    path = paths.of(paths.RUN, run_id=place.run_id)
    answer = await gateway.channels.of(place.trainer_url).call("GET", path, project=place.project)
    return int(training_pb2.Run.FromString(answer).next_seq)


def _operation_id(place: RunPlace, ours: int) -> str:
    return f"{place.run_id}:{ours}"
