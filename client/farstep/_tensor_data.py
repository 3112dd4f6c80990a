"""`TensorData`: an array on its way to or from a server, int64 or float32, without a cost per element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import numpy.typing as npt

from farstep.errors import InvalidInputError, MissingExtraError
from farstep_proto.loss_table import INT_INPUTS
from farstep_proto.tensors import Array

if TYPE_CHECKING:
    import torch

DTypeName = Literal["int64", "float32"]

TensorLike = Union["TensorData", npt.NDArray[np.generic], "torch.Tensor", Sequence[float], Sequence[Sequence[float]]]


@dataclass(frozen=True, slots=True, eq=False, init=False)
class TensorData:
    """An array of numbers.

    Args:
        data: numbers, flat or nested, or an array.
        dtype: "int64" or "float32"; None: int64 for whole numbers, else float32.
        shape: None: as `data` is.
    """

    data: Array  # flat
    dtype: DTypeName
    shape: tuple[int, ...]

    def __init__(
        self,
        data: npt.ArrayLike,
        dtype: DTypeName | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        array = _numeric(data)
        is_whole = bool(np.issubdtype(array.dtype, np.integer)) or array.dtype == np.bool_
        dtype = dtype or ("int64" if is_whole else "float32")
        if dtype not in ("int64", "float32"):
            raise InvalidInputError(f"{dtype!r} is neither 'int64' nor 'float32'", field="dtype")
        if dtype == "int64" and not is_whole and array.size:
            raise TypeError(f"data: int64 takes whole numbers, not {array.dtype}")
        size = array.shape if shape is None else tuple(int(length) for length in shape)
        if any(length < 0 for length in size) or int(np.prod(size, dtype=object)) != array.size:
            raise InvalidInputError(f"{array.size} elements do not fill {list(size)}", field="shape")
        with np.errstate(over="ignore"):  # becomes inf, which the call refuses by name
            flat = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
        object.__setattr__(self, "data", flat)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "shape", size)

    @classmethod
    def from_numpy(cls, array: npt.NDArray[np.generic]) -> TensorData:
        """Whole numbers become int64, everything else float32."""
        return cls(array)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> TensorData:
        """From any device and any dtype."""
        plain = tensor.detach().cpu()
        return cls((plain.float() if plain.is_floating_point() else plain).numpy())

    def to_numpy(self) -> Array:
        return self.data.reshape(self.shape)

    def to_torch(self) -> torch.Tensor:
        """A copy. Raises MissingExtraError where torch is not installed."""
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("to_torch needs torch", hint="pip install torch") from error
        return torch.from_numpy(self.to_numpy().copy())

    def tolist(self) -> list[Any]:
        values: list[Any] = self.to_numpy().tolist()
        return values

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.to_numpy(), dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.to_numpy())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorData):
            return NotImplemented
        return (self.dtype, self.shape) == (other.dtype, other.shape) and np.array_equal(
            self.data, other.data, equal_nan=self.dtype == "float32"
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        values = np.array2string(self.to_numpy(), threshold=8, edgeitems=3, separator=", ", max_line_width=1000)
        return f"TensorData({values}, dtype={self.dtype!r}, shape={list(self.shape)})"


def as_tensor_data(key: str, value: Any) -> TensorData:
    """A loss input by its name: lists of `target_tokens` are int64, other lists float32.

    Takes ours, another library's object with `data`, `dtype` and `shape`, a torch tensor, an array, a list.
    """
    dtype: DTypeName = "int64" if key in INT_INPUTS else "float32"
    try:
        if isinstance(value, TensorData):
            return value
        if hasattr(value, "detach"):
            return TensorData.from_torch(value)
        if isinstance(value, np.ndarray):
            return TensorData.from_numpy(value)
        if hasattr(value, "data") and hasattr(value, "shape") and hasattr(value, "dtype"):
            return TensorData(value.data, value.dtype, value.shape)
        return TensorData(value, dtype)
    except (TypeError, InvalidInputError) as error:
        raise type(error)(f"loss_fn_inputs.{key}: {error}") from error


def _numeric(data: npt.ArrayLike) -> npt.NDArray[np.generic]:
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise InvalidInputError("rows of different lengths", field="data") from error
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.number):
        raise TypeError(f"data: must be numbers, not {array.dtype}")
    if np.issubdtype(array.dtype, np.complexfloating):
        raise TypeError("data: must be real numbers")
    return array
