"""Triton kernels of root-mean-square norm together with the residual stream that flows past it (model.kernels.rms_norm)."""

import triton
import triton.language as tl


@triton.jit
def norm_forward_kernel(
    hidden,
    added,
    weight,
    total,
    result,
    inverse_rms,
    width,
    eps,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: `total = hidden + added` (where ADDS), `result = weight * total / rms(total)`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    here = column < width
    value = tl.load(hidden + row * width + column, mask=here, other=0.0)
    if ADDS:
        other = tl.load(added + row * width + column, mask=here, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(value.dtype)
        tl.store(total + row * width + column, value, mask=here)
    exact = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(exact * exact, axis=0) / width + eps)
    tl.store(inverse_rms + row, inverse)
    scaled = (exact * inverse).to(value.dtype)  # rounded before the weight, as LLaMA does
    factor = tl.load(weight + column, mask=here, other=0.0).to(tl.float32)
    tl.store(result + row * width + column, scaled.to(tl.float32) * factor, mask=here)


@triton.jit
def norm_backward_kernel(
    gradient,
    passing,
    total,
    weight,
    inverse_rms,
    total_gradient,
    weight_gradients,
    rows,
    width,
    PASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every so many rows: the gradient of `total`, with what passes by on the residual stream added, and a part of the weight's."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    here = column < width
    factor = tl.load(weight + column, mask=here, other=0.0).to(tl.float32)
    mine = tl.zeros((BLOCK,), dtype=tl.float32)
    for index in range(program, rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        incoming = tl.load(gradient + row * width + column, mask=here, other=0.0)
        value = tl.load(total + row * width + column, mask=here, other=0.0)
        inverse = tl.load(inverse_rms + row)
        scaled = value.to(tl.float32) * inverse
        mine += incoming.to(tl.float32) * scaled.to(value.dtype).to(tl.float32)
        weighted = incoming.to(tl.float32) * factor
        outgoing = inverse * (weighted - scaled * (tl.sum(weighted * scaled, axis=0) / width))
        if PASSES:
            outgoing += tl.load(passing + row * width + column, mask=here, other=0.0).to(tl.float32)
        tl.store(total_gradient + row * width + column, outgoing, mask=here)
    tl.store(weight_gradients + program.to(tl.int64) * width + column, mine, mask=here)
