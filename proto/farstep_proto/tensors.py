"""The tensor codec: numpy arrays to and from messages, without a cost per element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import common_pb2 as pb

IntArray = npt.NDArray[np.int32]
Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]

_DTYPES: dict[int, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
}


def tensor_to_proto(array: npt.NDArray[np.generic]) -> pb.Tensor:
    """Encodes integers as int64 and everything else as float32; shape as it is."""
    is_int = np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_
    kind = pb.DTYPE_INT64 if is_int else pb.DTYPE_FLOAT32
    data = np.ascontiguousarray(array, dtype=_DTYPES[kind]).tobytes()
    return pb.Tensor(dtype=kind, shape=array.shape, data=data)


def tensor_from_proto(message: pb.Tensor, *, field: str = "tensor") -> Array:
    """Decodes; read-only view of the message's bytes.

    Raises:
        InvalidInput: unknown dtype, a negative size, or bytes that do not fill the shape.
    """
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise InvalidInput("dtype must be DTYPE_FLOAT32 or DTYPE_INT64", field=f"{field}.dtype")
    by_value = not message.data and len(message.values) > 0
    if by_value:
        flat = np.array(message.values, dtype=dtype)
    elif len(message.data) % dtype.itemsize:
        raise InvalidInput(
            f"{len(message.data)} bytes are not a whole number of {dtype.itemsize}-byte elements",
            field=f"{field}.data",
        )
    else:
        flat = np.frombuffer(message.data, dtype=dtype)
    shape = tuple(message.shape) or (flat.size,)
    if any(size < 0 for size in shape) or int(np.prod(shape, dtype=object)) != flat.size:
        raise InvalidInput(f"{flat.size} elements do not fill shape {list(shape)}", field=f"{field}.shape")
    return flat.reshape(shape)


def ids_to_bytes(ids: Iterable[int] | npt.NDArray[np.integer]) -> bytes:
    """Token ids as little-endian int32."""
    array = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.int64)
    return array.astype("<i4").tobytes()


def ids_from_bytes(data: bytes, *, field: str = "tokens") -> IntArray:
    if len(data) % 4:
        raise InvalidInput(f"{len(data)} bytes are not a whole number of int32 tokens", field=field)
    return np.frombuffer(data, dtype="<i4")


def model_input_to_proto(ids: Iterable[int] | npt.NDArray[np.integer]) -> pb.ModelInput:
    return pb.ModelInput(chunks=[pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=ids_to_bytes(ids)))])


def model_input_ids(message: pb.ModelInput, *, field: str = "model_input") -> IntArray:
    """The token ids [T] of a text-only model input.

    Raises:
        InvalidInput: a chunk that is not text, or malformed bytes.
    """
    parts: list[IntArray] = []
    for index, chunk in enumerate(message.chunks):
        where = f"{field}.chunks[{index}]"
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise InvalidInput("this model takes text chunks only", field=where)
        text = chunk.encoded_text
        by_id = not text.tokens and len(text.ids) > 0
        parts.append(
            np.array(text.ids, dtype=np.int32) if by_id else ids_from_bytes(text.tokens, field=f"{where}.tokens")
        )
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
