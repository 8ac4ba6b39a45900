"""Tensors of a model as GGUF stores them, read, converted and written block by block."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from colossal_llama.model.weights.stored_tensors import ARITHMETIC_TYPES, StoredTensor, TensorShape
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

BLOCK_VALUES = 32  # that share a scale in q8_0
_LARGEST_F16 = 65504


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file to be written.

    Attributes:
        name: in GGUF.
        source: its name in the model directory.
        shape: dimensions as in PyTorch; GGUF lists them in reverse.
        kind: how its values are stored.
        heads: of a query or key projection whose rows are reordered; else None.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    heads: int | None

    @property
    def bytes(self) -> int:
        """Size in the file."""
        from gguf import GGML_QUANT_SIZES

        values, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // values * size


def plan_tensor(name: str, source: str, stored: TensorShape, outtype: str, heads: int | None) -> GgufTensor:
    """Chooses how a tensor is stored: vectors in fp32, matrices as asked for.

    A matrix whose rows are not whole blocks of q8_0 is stored in f16.

    Raises:
        UserError: its values are not floating-point numbers.
    """
    from gguf import GGMLQuantizationType

    if stored.dtype not in ARITHMETIC_TYPES:
        raise UserError(f"--gguf: the tensor {source} is stored as {stored.dtype_name}: export the model in bfloat16")
    if len(stored.shape) == 1:
        kind = GGMLQuantizationType.F32
    elif outtype == "q8_0" and stored.shape[-1] % BLOCK_VALUES == 0:
        kind = GGMLQuantizationType.Q8_0
    else:
        kind = GGMLQuantizationType.F16
    return GgufTensor(name, source, stored.shape, kind, heads)


@dataclass(frozen=True)
class TensorStream:
    """Content of a tensor, in the form in which `GGUFWriter.write_tensor_data` asks for an array.

    Attributes:
        nbytes: size of the content.
        blocks: returns the content.
    """

    nbytes: int
    blocks: Callable[[], Iterator[np.ndarray]]

    def tofile(self, file: BinaryIO) -> None:
        """Writes the blocks."""
        for block in self.blocks():
            file.write(np.ascontiguousarray(block).data)


def converted_blocks(tensor: GgufTensor, stored: StoredTensor) -> Iterator[np.ndarray]:
    """Yields the content of a tensor in the file's type.

    Raises:
        UserError: it holds NaN or Inf, or values beyond the type's range.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    for block in stored.blocks() if tensor.heads is None else [_reordered(stored, tensor.heads)]:
        values = stored.to_float(block)
        if not np.isfinite(values).all():
            raise UserError(
                f"--gguf: the tensor {tensor.source} holds NaN or Inf: copy the model again, or use another"
            )
        if tensor.kind == GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > _LARGEST_F16:
            raise UserError(f"--gguf: the tensor {tensor.source} holds values above {_LARGEST_F16:,}: choose q8_0")
        if tensor.kind == GGMLQuantizationType.Q8_0:
            values = values.reshape(-1, BLOCK_VALUES)
        yield quantize(values.astype(np.float32, copy=False), tensor.kind)


def _reordered(stored: StoredTensor, heads: int) -> np.ndarray:
    """Rows of a projection in the order of llama.cpp's rotary embeddings.

    transformers rotates dimension i of a head with i + half, llama.cpp's `llama` 2i with 2i + 1.
    """
    whole = np.concatenate(list(stored.blocks())).reshape(heads, 2, stored.shape.shape[0] // heads // 2, -1)
    return whole.swapaxes(1, 2).reshape(-1)


def llama3_frequency_factors(rope: Mapping[str, Any], head_dimensions: int) -> np.ndarray:
    """Divisors of the rotary frequencies by LLaMA-3.1's scaling: float32 [head_dimensions / 2].

    Long wavelengths are stretched by `factor`, short ones left, those between interpolated.
    """
    exponents = np.arange(0, head_dimensions, 2, dtype=np.float32) / np.float32(head_dimensions)
    wavelengths = 2 * np.pi * np.float32(rope["rope_theta"]) ** exponents
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
