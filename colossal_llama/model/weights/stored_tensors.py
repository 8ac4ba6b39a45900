"""Tensors as weight files hold them: read in part, without mapping the file, and without PyTorch.

What is read by plain reads is in memory only while it is used; a mapped file's pages count as the
process's memory until it is closed. Half precision is arithmetic in float32 and rounded to the
nearest again, ties to even, as PyTorch does.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

PIECE_BYTES = 16 << 20

# safetensors' names of types → (the type in which numpy holds the bits, PyTorch's name). numpy has
# no bfloat16 and no float8.
_TYPES = {
    "F64": (np.float64, "float64"),
    "F32": (np.float32, "float32"),
    "F16": (np.float16, "float16"),
    "BF16": (np.uint16, "bfloat16"),
    "F8_E4M3": (np.uint8, "float8_e4m3fn"),
    "F8_E5M2": (np.uint8, "float8_e5m2"),
    "I64": (np.int64, "int64"),
    "I32": (np.int32, "int32"),
    "I16": (np.int16, "int16"),
    "I8": (np.int8, "int8"),
    "U8": (np.uint8, "uint8"),
    "BOOL": (np.bool_, "bool"),
}
_OF_TORCH = {f"torch.{name}": dtype for dtype, (_, name) in _TYPES.items()}
ARITHMETIC_TYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorShape:
    """Shape of a stored tensor, and its type by safetensors' name (`BF16`).

    Raises:
        KeyError: the type is not supported.
    """

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _TYPES[self.dtype]

    @property
    def bit_type(self) -> np.dtype:
        """The numpy type that holds the bits of an item."""
        return np.dtype(_TYPES[self.dtype][0])

    @property
    def dtype_name(self) -> str:
        """The type's name in PyTorch and in config.json (`bfloat16`)."""
        return _TYPES[self.dtype][1]

    @property
    def bytes(self) -> int:
        """Size on the disk."""
        return math.prod(self.shape) * self.bit_type.itemsize

    def with_rows(self, rows: int) -> "TensorShape":
        """The same with another first dimension."""
        return TensorShape((rows, *self.shape[1:]), self.dtype)


def shape_of(tensor: "torch.Tensor") -> TensorShape:
    """Shape and type of a tensor.

    Raises:
        KeyError: the tensor's type is not supported.
    """
    return TensorShape(tuple(tensor.shape), _OF_TORCH[str(tensor.dtype)])


def bytes_of(tensor: "torch.Tensor") -> np.ndarray:
    """A PyTorch tensor's bytes, uint8; not copied if it is contiguous and on the CPU."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read in part.

    Attributes:
        shape: its shape and type.
        read: gives `count` bytes from a position on: `read(position, count)`.
    """

    shape: TensorShape
    read: Callable[[int, int], Any]

    @classmethod
    def of(cls, bits: np.ndarray, dtype: str) -> "StoredTensor":
        """A tensor that is in memory already.

        Args:
            bits: of the type's `bit_type`, C-contiguous.
            dtype: safetensors' name of the type.
        """
        content = bits.reshape(-1).view(np.uint8)
        return cls(TensorShape(bits.shape, dtype), lambda position, count: content[position : position + count])

    def pieces(self) -> Iterator[np.ndarray]:
        """All of it, as flat arrays of at most 16 MiB."""
        for position in range(0, self.shape.bytes, PIECE_BYTES):
            yield self._bits(position, min(PIECE_BYTES, self.shape.bytes - position))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The bits of the rows from `start` to `stop` of a matrix."""
        width = self.shape.shape[1]
        row_bytes = width * self.shape.bit_type.itemsize
        return self._bits(start * row_bytes, (stop - start) * row_bytes).reshape(-1, width)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The values of some rows of a matrix, float32 or float64.

        Args:
            rows: row numbers, ascending.
        """
        bits = np.empty((len(rows), self.shape.shape[1]), self.shape.bit_type)
        borders = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)] if len(rows) else [0]
        for first, last in pairwise(borders):
            bits[first:last] = self.rows(int(rows[first]), int(rows[last - 1]) + 1)
        return self.values(bits)

    def values(self, bits: np.ndarray) -> np.ndarray:
        """Bits as numbers: float64 as they are, anything smaller as float32."""
        if self.shape.dtype == "BF16":
            return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return bits if self.shape.dtype == "F64" else bits.astype(np.float32)

    def bits(self, values: np.ndarray) -> np.ndarray:
        """Numbers as bits of this tensor's type, rounded to the nearest."""
        if self.shape.dtype == "BF16":
            return _bfloat16_bits(np.ascontiguousarray(values, np.float32))
        with np.errstate(over="ignore"):  # beyond float16's range: infinity, as in PyTorch
            return values.astype(self.shape.bit_type)

    def _bits(self, position: int, count: int) -> np.ndarray:
        return np.frombuffer(self.read(position, count), self.shape.bit_type)


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The upper half of float32, rounded to the nearest, ties to even; a NaN stays one."""
    bits = values.view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), upper | np.uint32(0x40), rounded).astype(np.uint16)
