"""Sparse tensors in compressed rows (CSR), made dense: only what a correct encoder writes, and only within a budget.

A few bytes can claim any number of columns, so that the claim is paid for before anything is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import tinker_pb2


@dataclass(slots=True)
class DenseBudget:
    """How many bytes of dense tensors one request may yet come to."""

    remaining_bytes: int

    def spend(self, num_bytes: int, *, field: str) -> None:
        """Raises InvalidInput where there is not so much left."""
        if num_bytes > self.remaining_bytes:
            raise InvalidInput(
                f"{num_bytes} bytes when it is dense are too many for one request", field=field,
                hint="send fewer data at a time, or dense tensors with fewer columns",
            )  # fmt: skip
        self.remaining_bytes -= num_bytes


def densify(
    csr: tinker_pb2.SparseCsr, shape: tuple[int, ...], *, item_bytes: int, budget: DenseBudget, field: str
) -> bytes:
    """The dense bytes, row-major, 0 wherever nothing is listed.

    Args:
        shape: [R, C].
        item_bytes: of one element; what its bits mean is not looked at.

    Raises:
        InvalidInput: indices that do not belong together, lie outside, are not in order or listed twice; or too much.
    """
    if len(shape) != 2 or min(shape) < 0:
        raise InvalidInput(f"{list(shape)} is no shape of a sparse tensor", field=f"{field}.shape", hint="[T, K]")
    num_rows, num_columns = shape
    starts_R = _indices(csr.crow_indices, field=f"{field}.crow_indices")
    columns_n = _indices(csr.col_indices, field=f"{field}.col_indices")
    if len(csr.values) != len(columns_n) * item_bytes:
        raise InvalidInput(
            f"{len(csr.values)} bytes are not {len(columns_n)} values of {item_bytes} bytes", field=f"{field}.values"
        )
    lengths_R = np.diff(starts_R)
    if len(starts_R) != num_rows + 1 or starts_R[0] != 0 or starts_R[-1] != len(columns_n) or (lengths_R < 0).any():
        raise InvalidInput(
            f"they do not divide {len(columns_n)} values among {num_rows} rows", field=f"{field}.crow_indices"
        )
    if ((columns_n < 0) | (columns_n >= num_columns)).any():
        raise InvalidInput(f"one is outside {num_columns} columns", field=f"{field}.col_indices")
    budget.spend(num_rows * num_columns * item_bytes, field=field)
    places_n = np.repeat(np.arange(num_rows), lengths_R) * num_columns + columns_n
    if (np.diff(places_n) <= 0).any():
        raise InvalidInput("they must ascend within a row", field=f"{field}.col_indices")
    dense = np.zeros(num_rows * num_columns, dtype=f"V{item_bytes}")
    dense[places_n] = np.frombuffer(csr.values, dtype=dense.dtype)
    return dense.tobytes()


def _indices(data: bytes, *, field: str) -> npt.NDArray[np.int64]:
    if len(data) % 8:
        raise InvalidInput(f"{len(data)} bytes are not a whole number of int64 indices", field=field)
    return np.frombuffer(data, dtype="<i8")
