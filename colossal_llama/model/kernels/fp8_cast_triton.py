"""The Triton kernel of `fp8_cast.rounded`: a tile is read once, scaled, and written in one or both layouts."""

import triton
import triton.language as tl


@triton.jit
def round_kernel(
    matrix,
    largest,
    by_row,
    by_column,
    scale,
    count,
    padded,
    columns,
    LIMIT: tl.constexpr,
    TINIEST: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """One tile of (count, columns), rows beyond `count` being zeros; the first also writes the scale."""
    row = tl.program_id(1).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    magnitude = tl.maximum(tl.load(largest), TINIEST, propagate_nan=tl.PropagateNan.ALL)
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(scale, magnitude / LIMIT)
    here = (row < count)[:, None] & (column < columns)[None, :]
    tile = tl.load(matrix + row[:, None] * columns + column[None, :], mask=here, other=0.0).to(tl.float32)
    tile = tl.minimum(tl.maximum(tile * (LIMIT / magnitude), -LIMIT), LIMIT)
    inside = (row < padded)[:, None] & (column < columns)[None, :]
    if BY_ROW:
        small = tile.to(by_row.dtype.element_ty)
        tl.store(by_row + row[:, None] * columns + column[None, :], small, mask=inside)
    if BY_COLUMN:
        small = tile.to(by_column.dtype.element_ty)
        tl.store(by_column + column[:, None] * padded + row[None, :], tl.trans(small), mask=tl.trans(inside))
