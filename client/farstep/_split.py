"""A batch cut into requests below the server's size limit: parts of one operation, joined again there."""

from __future__ import annotations

from farstep.errors import InvalidInputError
from farstep_proto.v1 import training_pb2

# What a datum adds to the message around it: a tag and a length.
_FRAME_BYTES = 8


def split(request: training_pb2.ForwardRequest, *, max_request_bytes: int) -> list[bytes]:
    """The encoded parts, in order, as few as a greedy cut gives; one where everything fits.

    Raises:
        InvalidInputError: one datum alone is over the limit.
    """
    whole = request.SerializeToString()
    if len(whole) <= max_request_bytes:
        return [whole]
    frame = training_pb2.ForwardRequest(loss_fn=request.loss_fn, loss_fn_config=request.loss_fn_config)
    room_bytes = max_request_bytes - frame.ByteSize()
    parts: list[bytes] = []
    part = training_pb2.ForwardRequest()
    part_bytes = 0
    for index, datum in enumerate(request.data):
        datum_bytes = datum.ByteSize() + _FRAME_BYTES
        if datum_bytes > room_bytes:
            raise InvalidInputError(
                f"takes {datum_bytes} bytes, but a request takes at most {max_request_bytes}", field=f"data[{index}]"
            )
        if part_bytes + datum_bytes > room_bytes:
            parts.append(_encoded(part, frame))
            part, part_bytes = training_pb2.ForwardRequest(), 0
        part.data.append(datum)
        part_bytes += datum_bytes
    return [*parts, _encoded(part, frame)]


def _encoded(part: training_pb2.ForwardRequest, frame: training_pb2.ForwardRequest) -> bytes:
    part.MergeFrom(frame)
    return part.SerializeToString()
