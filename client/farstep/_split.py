"""A batch cut into requests below the server's size limit: parts of one operation, joined again there.

One datum, or pair, that is larger by itself travels alone, up to another limit.
"""

from __future__ import annotations

from farstep.errors import InvalidInputError
from farstep_proto.loss_table import LOSS_TABLE
from farstep_proto.v1 import training_pb2

# What a datum adds to the message around it: a tag and a length.
_FRAME_BYTES = 8


def split(request: training_pb2.ForwardRequest, *, max_request_bytes: int, max_datum_bytes: int) -> list[bytes]:
    """The encoded parts, in order, as few as a greedy cut gives; one where everything fits. No pair is parted.

    Args:
        max_datum_bytes: of a part that is one datum alone, or one pair.

    Raises:
        InvalidInputError: one datum alone, or one pair, is over that limit.
    """
    if request.ByteSize() <= max_request_bytes:
        return [request.SerializeToString()]
    frame = training_pb2.ForwardRequest(
        loss_fn=request.loss_fn, loss_fn_config=request.loss_fn_config, adapter=request.adapter
    )
    room_bytes = max_request_bytes - frame.ByteSize()
    most_bytes = max(max_datum_bytes, max_request_bytes)
    parts: list[bytes] = []
    part = training_pb2.ForwardRequest()
    part_bytes = 0
    num_together = LOSS_TABLE[request.loss_fn].num_data
    for index in range(0, len(request.data), num_together):
        together = request.data[index : index + num_together]
        num_bytes = sum(datum.ByteSize() + _FRAME_BYTES for datum in together)
        if num_bytes > most_bytes - frame.ByteSize():
            raise InvalidInputError(
                f"{'the pair ' if num_together == 2 else ''}takes {num_bytes} bytes, but a request takes at most"
                f" {most_bytes}",
                field=f"data[{index}]",
            )
        if part.data and part_bytes + num_bytes > room_bytes:
            parts.append(_encoded(part, frame))
            part, part_bytes = training_pb2.ForwardRequest(), 0
        part.data.extend(together)
        part_bytes += num_bytes
    return [*parts, _encoded(part, frame)]


def _encoded(part: training_pb2.ForwardRequest, frame: training_pb2.ForwardRequest) -> bytes:
    part.MergeFrom(frame)
    return part.SerializeToString()
