"""fp8 quantization of a matrix, in both layouts that Hopper's matrix units need, in one pass.

One scale for the whole matrix maps its amax, the largest absolute value, to the format's largest
value (Micikevicius et al., arXiv 2209.05433): `e4m3` (3 bits of mantissa, up to 448) for
activations and weights, `e5m2` (2 bits, up to 57,344) for gradients, which have a wider range.

The units multiply `A @ B` only where the summed dimension is contiguous in both. Forward and
backward sum over different dimensions, so most matrices are needed row-major and transposed:

    forward      output (tokens, out)    = x (tokens, in)       · w (out, in)
    backward     dx     (tokens, in)     = dy (tokens, out)     · w transposed (in, out)
                 dw     (out, in)        = dy transposed        · x transposed (in, tokens)

On an H200 both layouts of 16,384 × 4,096 take 0.073 ms and the amax 0.053 ms. A product takes
0.43 ms in fp8 and 0.79 ms in bf16.
"""

from dataclasses import dataclass

import torch

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
ALIGNMENT = 16
"""Every dimension of an fp8 product must be a multiple of it."""
_MIN_AMAX = 1e-12  # replaces 0
_BLOCK_ROWS, _BLOCK_COLUMNS, _WARPS = 128, 64, 4  # within 5 % of five other shapes on an H200


@dataclass(frozen=True)
class Quantized:
    """Quantized matrix (rows, columns) in fp8, with rows of zeros up to a multiple of 16."""

    rows: torch.Tensor | None
    """(padded rows, columns), or None where it was not requested."""
    transposed: torch.Tensor | None
    """(columns, padded rows), or None where it was not requested."""
    scale: torch.Tensor
    """fp32 scalar: the dequantization factor, amax / the format's largest value."""


def amax(matrix: torch.Tensor) -> torch.Tensor:
    """Largest absolute value, an fp32 scalar on the device; non-finite where a value is."""
    return torch.linalg.vector_norm(matrix, float("inf"), dtype=torch.float32)


def quantize(
    matrix: torch.Tensor,
    matrix_amax: torch.Tensor,
    dtype: torch.dtype = E4M3,
    rows: bool = True,
    transposed: bool = True,
) -> Quantized:
    """Quantizes a matrix to fp8.

    Args:
        matrix: (rows, columns), contiguous, bf16 or fp16; columns a multiple of 16.
        matrix_amax: its `amax`, an fp32 scalar on the same device.
        dtype: `E4M3` or `E5M2`.
        rows: request the row-major layout.
        transposed: request the transposed layout.
    """
    if not matrix.is_cuda:
        return _quantize_by_pytorch(matrix, matrix_amax, dtype, rows, transposed)
    count, columns = matrix.shape
    padded = count + -count % ALIGNMENT
    by_row = matrix.new_empty(padded, columns, dtype=dtype) if rows else None
    by_column = matrix.new_empty(columns, padded, dtype=dtype) if transposed else None
    scale = matrix.new_empty((), dtype=torch.float32)
    grid = (-(-columns // _BLOCK_COLUMNS), -(-padded // _BLOCK_ROWS))
    _kernel()[grid](
        matrix,
        matrix_amax,
        by_row if rows else by_column,
        by_column if transposed else by_row,
        scale,
        count,
        padded,
        columns,
        MAX_VALUE=torch.finfo(dtype).max,
        MIN_AMAX=_MIN_AMAX,
        BY_ROW=rows,
        BY_COLUMN=transposed,
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK_COLUMNS=_BLOCK_COLUMNS,
        num_warps=_WARPS,
    )
    return Quantized(by_row, by_column, scale)


def _quantize_by_pytorch(matrix, matrix_amax, dtype, rows, transposed) -> Quantized:
    max_value = torch.finfo(dtype).max
    matrix_amax = matrix_amax.clamp(min=_MIN_AMAX)
    padding = (0, 0, 0, -matrix.shape[0] % ALIGNMENT)
    whole = torch.nn.functional.pad(
        (matrix.float() * (max_value / matrix_amax)).clamp(-max_value, max_value).to(dtype).float(), padding
    ).to(dtype)
    return Quantized(whole if rows else None, whole.t().contiguous() if transposed else None, matrix_amax / max_value)


def _kernel():
    """Imports the Triton kernel on use: only PyTorch's CUDA builds come with Triton."""
    from colossal_llama.model.kernels.fp8_cast_triton import quantize_kernel

    return quantize_kernel
