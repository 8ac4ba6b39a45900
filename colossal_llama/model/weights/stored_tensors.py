"""Lazily read tensors of weight files: in part, without mapping the file, and without PyTorch.

Plain reads occupy memory only while their result is used; a mapped file's pages count as the
process's memory until it is closed. PyTorch is not imported: with it init_model.py took 389 MB
where it takes 219. Half precision is converted to float32 for arithmetic, and back by rounding to
nearest, ties to even, as PyTorch does; numpy's bfloat16 is that of ml_dtypes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 16 << 20

# safetensors' names of dtypes → numpy's; their names are PyTorch's.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_OF_TORCH = {f"torch.{dtype.name}": name for name, dtype in _DTYPES.items()}
ARITHMETIC_TYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorShape:
    """Shape of a stored tensor, and its dtype by safetensors' name (`BF16`).

    Raises:
        KeyError: the dtype is not supported.
    """

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _DTYPES[self.dtype]

    @property
    def storage_dtype(self) -> np.dtype:
        """Dtype of an item in numpy."""
        return _DTYPES[self.dtype]

    @property
    def dtype_name(self) -> str:
        """Name of the dtype in PyTorch and in config.json (`bfloat16`)."""
        return _DTYPES[self.dtype].name

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return math.prod(self.shape) * self.storage_dtype.itemsize

    def with_rows(self, rows: int) -> "TensorShape":
        """Returns the same with another first dimension."""
        return TensorShape((rows, *self.shape[1:]), self.dtype)


def shape_of(tensor: "torch.Tensor") -> TensorShape:
    """Returns shape and dtype of a tensor.

    Raises:
        KeyError: the tensor's dtype is not supported.
    """
    return TensorShape(tuple(tensor.shape), _OF_TORCH[str(tensor.dtype)])


def bytes_of(tensor: "torch.Tensor") -> np.ndarray:
    """Returns a PyTorch tensor's bytes, uint8; not copied if it is contiguous and on the CPU."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


@dataclass(frozen=True)
class StoredTensor:
    """Tensor of a weight file, read in part.

    Attributes:
        shape: its shape and dtype.
        read: `read(offset, count)` returns `count` bytes from an offset in the tensor.
    """

    shape: TensorShape
    read: Callable[[int, int], Any]

    @classmethod
    def of(cls, array: np.ndarray, dtype: str) -> "StoredTensor":
        """Wraps a tensor that is in memory.

        Args:
            array: in the dtype's `storage_dtype`, C-contiguous.
            dtype: safetensors' name of the dtype.
        """
        content = array.reshape(-1).view(np.uint8)
        return cls(TensorShape(array.shape, dtype), lambda offset, count: content[offset : offset + count])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the whole tensor as flat arrays of at most 16 MiB, in the storage dtype."""
        for offset in range(0, self.shape.bytes, BLOCK_BYTES):
            yield self._read(offset, min(BLOCK_BYTES, self.shape.bytes - offset))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the rows from `start` to `stop` of a matrix, in the storage dtype."""
        width = self.shape.shape[1]
        row_bytes = width * self.shape.storage_dtype.itemsize
        return self._read(start * row_bytes, (stop - start) * row_bytes).reshape(-1, width)

    def items(self, start: int, stop: int) -> np.ndarray:
        """Returns the values from `start` to `stop` of the flat tensor, in the storage dtype."""
        size = self.shape.storage_dtype.itemsize
        return self._read(start * size, (stop - start) * size)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns the values of some rows of a matrix, float32 or float64.

        Args:
            rows: row numbers, ascending.
        """
        return self.to_float(self.stored_rows(rows))

    def stored_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns some rows of a matrix in the storage dtype; rows in sequence are read at once.

        Args:
            rows: row numbers, in any order.
        """
        gathered = np.empty((len(rows), self.shape.shape[1]), self.shape.storage_dtype)
        runs = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)] if len(rows) else [0]
        for first, last in pairwise(runs):
            gathered[first:last] = self.rows(int(rows[first]), int(rows[last - 1]) + 1)
        return gathered

    def to_float(self, stored: np.ndarray) -> np.ndarray:
        """Converts from the storage dtype to float32; float64 is left as it is."""
        return stored if self.shape.dtype == "F64" else stored.astype(np.float32)

    def from_float(self, values: np.ndarray) -> np.ndarray:
        """Converts values to the storage dtype, rounding to nearest."""
        with np.errstate(over="ignore"):  # beyond the range: infinity, as in PyTorch
            return values.astype(self.shape.storage_dtype)

    def _read(self, offset: int, count: int) -> np.ndarray:
        return np.frombuffer(self.read(offset, count), self.shape.storage_dtype)
