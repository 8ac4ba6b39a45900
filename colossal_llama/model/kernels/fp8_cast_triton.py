"""Triton kernel of `fp8_cast.quantize`: reads a tile once and writes it in one or both layouts."""

import triton
import triton.language as tl


@triton.jit
def quantize_kernel(
    matrix,
    amax,
    by_row,
    by_column,
    scale,
    count,
    padded,
    columns,
    MAX_VALUE: tl.constexpr,
    MIN_AMAX: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Quantizes one tile, with zeros in rows beyond `count`; the first also writes the scale."""
    row = tl.program_id(1).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    magnitude = tl.maximum(tl.load(amax), MIN_AMAX, propagate_nan=tl.PropagateNan.ALL)
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(scale, magnitude / MAX_VALUE)
    mask = (row < count)[:, None] & (column < columns)[None, :]
    tile = tl.load(matrix + row[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
    tile = tl.minimum(tl.maximum(tile * (MAX_VALUE / magnitude), -MAX_VALUE), MAX_VALUE)
    padded_mask = (row < padded)[:, None] & (column < columns)[None, :]
    if BY_ROW:
        quantized = tile.to(by_row.dtype.element_ty)
        tl.store(by_row + row[:, None] * columns + column[None, :], quantized, mask=padded_mask)
    if BY_COLUMN:
        quantized = tile.to(by_column.dtype.element_ty)
        tl.store(by_column + column[:, None] * padded + row[None, :], tl.trans(quantized), mask=tl.trans(padded_mask))
