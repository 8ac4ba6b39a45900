"""Conversion of stored weights to another dtype, block by block; what is lost is counted."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from colossal_llama.model.weights.stored_tensors import ARITHMETIC_TYPES, StoredTensor, TensorShape
from colossal_llama.utils.errors import UserError

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Options of --dtype, with safetensors' names."""
_EXPONENT_OF_INFINITY = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}
"""The bits of the least value that is not finite, without its sign."""


@dataclass
class ConversionCounts:
    """Counts of values that the conversion has changed so far.

    Attributes:
        became_zero: values other than 0 that are too small for the new dtype.
    """

    became_zero: int = 0


def target_shape(name: str, shape: TensorShape, dtype: str | None) -> TensorShape:
    """Shape and dtype of a tensor as it is written.

    Args:
        name: of the tensor, for messages.
        shape: as stored.
        dtype: an option of --dtype; None: as stored.

    Raises:
        UserError: it is stored quantized or as integers.
    """
    if shape.dtype not in ARITHMETIC_TYPES:
        raise UserError(
            f"the tensor {name} is stored as {shape.dtype_name}: quantized weights are not exported; give the model "
            "that it was made from"
        )
    return TensorShape(shape.shape, DTYPES[dtype] if dtype else shape.dtype)


def converted_blocks(
    name: str, stored: StoredTensor, target: TensorShape, counts: ConversionCounts
) -> Iterator[np.ndarray]:
    """Yields a tensor's values in the target's dtype, rounded to nearest as PyTorch rounds.

    Raises:
        UserError: there are NaN or Inf, or values beyond the range of the dtype.
    """
    for block in stored.blocks():
        if not _is_finite(block, stored.shape.dtype):
            raise UserError(
                f"the tensor {name} has NaN or Inf: the weights are damaged, or come from a run that diverged; export "
                "an earlier checkpoint"
            )
        if target.dtype == stored.shape.dtype:
            yield block
            continue
        values = stored.to_float(block)
        with np.errstate(over="ignore", under="ignore"):
            converted = values.astype(target.storage_dtype)
        if not _is_finite(converted, target.dtype):
            beyond = int(np.count_nonzero(~np.isfinite(converted.astype(np.float32))))
            raise UserError(
                f"the tensor {name} has {beyond:,} values beyond the range of {target.dtype_name} in one block (the "
                f"largest is {float(np.abs(values).max()):.6g}): give --dtype bfloat16 or float32"
            )
        counts.became_zero += int(np.count_nonzero(values)) - int(np.count_nonzero(_bits(converted) << 1))
        yield converted


def _is_finite(block: np.ndarray, dtype: str) -> bool:
    if not block.size:
        return True
    bits = _bits(block)
    magnitude = bits & bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    return int(magnitude.max()) < _EXPONENT_OF_INFINITY[dtype]


def _bits(block: np.ndarray) -> np.ndarray:
    return block.view(np.dtype(f"u{block.dtype.itemsize}"))
