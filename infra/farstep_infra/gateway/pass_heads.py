"""The beginning of a pass that is too large to be read: whose it is and its number, so that it leaves no gap behind it.

The SDK writes a message's fields in the order of their numbers, so that its id and seq come before the data.
"""

from __future__ import annotations

from dataclasses import dataclass

from farstep_proto.errors import PayloadTooLarge
from farstep_proto.wire_fields import WireField, wire_fields

HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class PassHead:
    """Args: `datum_bytes`: of the datum in which the beginning ends, the one of that `index`; 0 where there is none."""

    model_id: str
    seq_id: int
    index: int
    datum_bytes: int

    def refusal(self, limit: int) -> PayloadTooLarge:
        """Of a pass that is larger than `limit` bytes."""
        if self.datum_bytes > limit:
            message = f"takes {self.datum_bytes} bytes, but a request takes at most {limit}"
            return PayloadTooLarge(message, field=f"data[{self.index}]")
        return PayloadTooLarge(f"the pass is larger than {limit} bytes", field="data", hint="send less at a time")


def read_head(head: bytes) -> PassHead | None:
    """None: it does not begin with an id and a seq."""
    model_id, seq_id, index, last = "", 0, -1, WireField(0)
    try:
        for last in wire_fields(memoryview(head)):
            match last.number:
                case 1 if last.content is not None:
                    model_id = bytes(last.content).decode()
                case 2:
                    seq_id = last.value
                case 3:
                    index += 1
    except ValueError:  # it ends within a field, or is none
        pass
    if not model_id or not seq_id:
        return None
    return PassHead(model_id, seq_id, max(index, 0), last.num_bytes if last.is_cut_off else 0)
