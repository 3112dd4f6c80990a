"""The fields of an encoded message, looked at one by one without decoding it: how many there are, how long each is.

It knows protobuf's wire types and no message. The last field may be cut off, so that a message's beginning can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_MAX_VARINT_BYTES = 10
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class WireField:
    """
    Args:
        number: of the field, as the .proto has it.
        value: of a varint; else 0.
        content: of what has a length: bytes, a message, or packed numbers; else None.
        num_bytes: that length, as it is claimed; more than `content` has where the data ends early.
    """

    number: int
    value: int = 0
    content: memoryview | None = None
    num_bytes: int = 0

    @property
    def is_cut_off(self) -> bool:
        return self.content is not None and len(self.content) < self.num_bytes


def wire_fields(data: memoryview) -> Iterator[WireField]:
    """Raises:
    ValueError: it is no message; also where it ends within a tag, a length or a number.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield WireField(tag >> 3, value=value)
            case 2:
                num_bytes, at = _varint(data, at)
                yield WireField(tag >> 3, content=data[at : at + num_bytes], num_bytes=num_bytes)
                at += num_bytes
            case 1 | 5 as fixed:
                at += _FIXED_BYTES[fixed]
                yield WireField(tag >> 3)
            case other:
                raise ValueError(f"wire type {other}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at == len(data):
            raise ValueError("it ends early")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("no number")
