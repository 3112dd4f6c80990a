"""Messages in a row on one stream of bytes: each is preceded by its length, four bytes, big-endian.

An empty frame says nothing: servers send one now and then, so that whoever reads knows that they are there.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

HEARTBEAT = bytes(4)
MAX_FRAME_BYTES = 64 << 20


def framed(message: Message) -> bytes:
    data = message.SerializeToString()
    return len(data).to_bytes(4, "big") + data


class Unframer:
    """Cuts a stream into the messages that were put into it, however its bytes arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def push(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole now; heartbeats are left out.

        Raises:
            ValueError: a length that no message has.
        """
        self._rest += data
        while len(self._rest) >= 4:
            length = int.from_bytes(self._rest[:4], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            if len(self._rest) < 4 + length:
                return
            message = bytes(self._rest[4 : 4 + length])
            del self._rest[: 4 + length]
            if message:
                yield message
