"""What an operation is waiting for, told to who has waited for it in vain: numbers that never came, or its turn.

The trainer is asked only then, after a whole hold, and a few questions at a time: thousands of promises of one client
end their holds in the same moment. A trainer that does not say at once leaves the reason open; no promise fails by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from farstep_infra.gateway.channel import Channel
from farstep_infra.gateway.results import Pending
from farstep_infra.gateway.seqs import SeqMap
from farstep_proto import paths
from farstep_proto.errors import ApiError
from farstep_proto.v1 import operations_pb2, training_pb2

PAUSED = "paused_capacity"  # the one state of the SDK's with which it prints a reason that is no rate limit
_PATIENCE_S = 5.0
_MAX_NAMED = 5


async def looked_at(channel: Channel, operation_id: str, seqs: SeqMap, *, project: str) -> Pending:
    """Args: `seqs`: of the operation's run."""
    if channel.trouble:
        return Pending(PAUSED, channel.trouble)
    try:
        async with asyncio.timeout(_PATIENCE_S), channel.looking:
            return await _looked_at(channel, operation_id, seqs, project)
    except (ApiError, TimeoutError):
        return Pending()


async def _looked_at(channel: Channel, operation_id: str, seqs: SeqMap, project: str) -> Pending:
    path = paths.of(paths.OPERATION, operation_id=operation_id)
    operation = operations_pb2.Operation.FromString(await channel.call("GET", path, project=project))
    if operation.state != operations_pb2.OPERATION_STATE_QUEUED:
        return Pending()
    run_id, _, ours = operation_id.rpartition(":")
    path = paths.of(paths.RUN, run_id=run_id)
    run = training_pb2.Run.FromString(await channel.call("GET", path, project=project))
    missing = [seq for seq in run.missing_seqs if seq < int(ours)]
    if missing:
        return Pending(PAUSED, _of_missing(missing, seqs))
    num = operation.queue_place
    return Pending(PAUSED, f"{num} operation{'' if num == 1 else 's'} will run before it") if num else Pending()


def _of_missing(missing: Sequence[int], seqs: SeqMap) -> str:
    """In Tinker's numbers; what has none, another client was to submit."""
    theirs = [seqs.theirs(seq) for seq in missing]
    named = [str(seq) for seq in theirs if seq is not None][:_MAX_NAMED]
    more = len(missing) - len(named)
    what = f"seq_id {', '.join(named)}" if named else "another client's"
    if named and more:
        what += f" and {more} more"
    num = f"{len(missing)} earlier operation{'' if len(missing) == 1 else 's'}"
    return (
        f"{num} of this model ({what}) never came, and what follows waits for them, a day at most; farstep's resume_run"
        " gives them up at once"
    )
