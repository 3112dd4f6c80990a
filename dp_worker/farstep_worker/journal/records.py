"""What a journal says of runs and operations: plain values, as they are written and as they come back.

An operation's *key* is its run and seq. A body is kept as it came over the wire, with its media type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb

# What gives the same result whenever it is done again on the same run.
_COMPUTED = frozenset({Verb.FORWARD, Verb.FORWARD_BACKWARD, Verb.OPTIM_STEP, Verb.RESET, Verb.SKIP})


@dataclass(frozen=True, slots=True)
class Part:
    """A request of a submission; most have one. `body` is None once no replay needs it."""

    run_id: str
    seq: int
    part: int
    num_parts: int
    verb: str
    content_type: str
    digest: bytes
    num_bytes: int
    client_id: str = ""
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """An operation's outcome, a serialized `Operation`.

    `ran`: it was taken from the queue; else it was cancelled there, or given up, or its run was deleted.
    `is_forgotten`: nobody can ask for it any more; what was large in it is gone then.
    """

    run_id: str
    seq: int
    verb: str
    digest: bytes
    ran: bool
    state: int
    outcome: bytes
    is_forgotten: bool = False

    @property
    def succeeded(self) -> bool:
        return self.state == operations_pb2.OPERATION_STATE_SUCCEEDED

    @property
    def is_repeatable(self) -> bool:
        """Whether a replay would come to the same, so that it may be told before it is on the disk."""
        return self.succeeded and self.verb in _COMPUTED


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    run_id: str
    seq: int
    name: str
    num_bytes: int


@dataclass(slots=True)
class RecordedOperation:
    """Everything of one operation. `clients` are those that have not acknowledged its outcome."""

    seq: int
    parts: list[Part] = field(default_factory=list)
    ending: Ending | None = None
    clients: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return bool(self.parts) and len(self.parts) == self.parts[0].num_parts

    @property
    def digest(self) -> bytes:
        """Of the whole: that of its only part, or of its parts' digests in order."""
        digests = [part.digest for part in sorted(self.parts, key=lambda part: part.part)]
        return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run with its operations by seq, ascending, and its snapshots, the newest first.

    `incarnation` tells it from any other run that ever had the same id. `covered_seq`: operations up to there are
    in every snapshot that is kept, and cannot be done again.
    """

    run_id: str
    incarnation: str
    request: pb.CreateRunRequest
    is_deleted: bool
    covered_seq: int
    operations: Mapping[int, RecordedOperation]
    snapshots: Sequence[SnapshotRow]
