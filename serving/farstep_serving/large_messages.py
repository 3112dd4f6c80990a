"""Messages above the usual size: taken where they are little else than the raw bytes of tensors, as a long datum is.

Whatever else is in a message can take many times the memory of its bytes once it is decoded, which the usual limit
bounds; raw bytes stay what they are. So a large message is looked at as it came, before anything is made of it.

Invariant: what passes has at most `MAX_FIELDS` fields, of which a byte of packed numbers counts as one.
"""

from __future__ import annotations

from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from farstep_proto.errors import PayloadTooLarge
from farstep_proto.wire_fields import wire_fields

MAX_FIELDS = 20_000
_RAW = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


def check_large(body: bytes, kind: type[Message], *, usual_bytes: int) -> None:
    """Looks at an encoded `kind` that is larger than `usual_bytes`.

    Raises:
        PayloadTooLarge: it has more than a few large tensors in it, or is no message.
    """
    if len(body) <= usual_bytes:
        return
    try:
        is_taken = _count(memoryview(body), cast(Descriptor, kind.DESCRIPTOR), MAX_FIELDS) >= 0
    except ValueError:
        is_taken = False
    if not is_taken:
        raise PayloadTooLarge(
            f"the body is larger than {usual_bytes} bytes, and not by tensors alone",
            field="body",
            hint="send the data in several parts; only a datum that is larger by itself may take more",
        )


def _count(data: memoryview, kind: Descriptor, left: int) -> int:
    """How many more fields there may be after this message's; below 0 where it has too many.

    Raises:
        ValueError: it is no message.
    """
    for found in wire_fields(data):
        left -= 1
        field = kind.fields_by_number.get(found.number)
        if found.is_cut_off:
            raise ValueError("it ends early")
        if found.content is not None and field is not None:
            if field.message_type is not None:
                left = _count(found.content, field.message_type, left)
            elif field.type not in _RAW:
                left -= found.num_bytes
        if left < 0:
            break
    return left
