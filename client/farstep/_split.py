"""A batch cut into requests below the server's size limit: parts of one operation, joined again there."""

from __future__ import annotations

from farstep.errors import InvalidInputError
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.v1 import training_pb2

# What a datum adds to the message around it: a tag and a length.
_FRAME_BYTES = 8


def split(request: training_pb2.ForwardRequest, *, max_request_bytes: int) -> list[bytes]:
    """The encoded parts, in order, as few as a greedy cut gives; one where everything fits. No pair is parted.

    Raises:
        InvalidInputError: one datum alone, or one pair, is over the limit.
    """
    whole = request.SerializeToString()
    if len(whole) <= max_request_bytes:
        return [whole]
    frame = training_pb2.ForwardRequest(
        loss_fn=request.loss_fn, loss_fn_config=request.loss_fn_config, adapter=request.adapter
    )
    room_bytes = max_request_bytes - frame.ByteSize()
    parts: list[bytes] = []
    part = training_pb2.ForwardRequest()
    part_bytes = 0
    num_together = LOSS_TABLE[request.loss_fn].num_data
    for index in range(0, len(request.data), num_together):
        together = request.data[index : index + num_together]
        num_bytes = sum(datum.ByteSize() + _FRAME_BYTES for datum in together)
        if num_bytes > room_bytes:
            raise InvalidInputError(
                f"{'the pair ' if num_together == 2 else ''}takes {num_bytes} bytes, but a request takes at most"
                f" {max_request_bytes}",
                field=f"data[{index}]",
            )
        if part_bytes + num_bytes > room_bytes:
            parts.append(_encoded(part, frame))
            part, part_bytes = training_pb2.ForwardRequest(), 0
        part.data.extend(together)
        part_bytes += num_bytes
    return [*parts, _encoded(part, frame)]


def _encoded(part: training_pb2.ForwardRequest, frame: training_pb2.ForwardRequest) -> bytes:
    part.MergeFrom(frame)
    return part.SerializeToString()
