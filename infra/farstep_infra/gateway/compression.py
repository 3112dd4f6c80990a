"""Compressed bodies of the one route that takes them, opened up to a bound: a small body may stand for a huge one."""

from __future__ import annotations

import io

import zstandard

from farstep_proto.errors import InvalidInput, PayloadTooLarge

TAKEN = frozenset({"zstd"})
_MAX_WINDOW_BYTES = 8 << 20  # what opening one takes beside its content; more than any usual level asks for


def decompressed(body: bytes, encoding: str, *, limit: int) -> bytes:
    """The body as it was before it was compressed.

    Raises:
        InvalidInput: it is not what its encoding says.
        PayloadTooLarge: it is larger than `limit` bytes.
    """
    if encoding.strip().lower() not in TAKEN:
        return body
    opener = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    try:
        with opener.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            content = reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise InvalidInput(f"the body is not zstd: {error}", field="body") from error
    if len(content) > limit:
        raise PayloadTooLarge(f"the body is larger than {limit} bytes when it is opened", field="body")
    return content
