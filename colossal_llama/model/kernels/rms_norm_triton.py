"""Triton kernels of RMSNorm fused with the residual stream (model.kernels.rms_norm)."""

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
    """Normalizes one row: `total = hidden (+ added)`, `result = weight * total / rms(total)`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    value = tl.load(hidden + row * width + column, mask=mask, other=0.0)
    if ADDS:
        other = tl.load(added + row * width + column, mask=mask, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(value.dtype)
        tl.store(total + row * width + column, value, mask=mask)
    value_fp32 = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value_fp32 * value_fp32, axis=0) / width + eps)
    tl.store(inverse_rms + row, inverse)
    scaled = (value_fp32 * inverse).to(value.dtype)  # rounded before the weight, as LLaMA does
    factor = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(result + row * width + column, scaled.to(tl.float32) * factor, mask=mask)


@triton.jit
def norm_backward_kernel(
    gradient,
    residual_gradient,
    total,
    weight,
    inverse_rms,
    total_gradient,
    weight_gradients,
    rows,
    width,
    HAS_RESIDUAL_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes, for every n-th row, the gradient of `total` and a partial sum of the weight's.

    The residual stream's gradient is added to the first.
    """
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < width
    factor = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    weight_gradient = tl.zeros((BLOCK,), dtype=tl.float32)
    for index in range(program, rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        output_gradient = tl.load(gradient + row * width + column, mask=mask, other=0.0)
        value = tl.load(total + row * width + column, mask=mask, other=0.0)
        inverse = tl.load(inverse_rms + row)
        scaled = value.to(tl.float32) * inverse
        weight_gradient += output_gradient.to(tl.float32) * scaled.to(value.dtype).to(tl.float32)
        weighted = output_gradient.to(tl.float32) * factor
        outgoing = inverse * (weighted - scaled * (tl.sum(weighted * scaled, axis=0) / width))
        if HAS_RESIDUAL_GRADIENT:
            outgoing += tl.load(residual_gradient + row * width + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(total_gradient + row * width + column, outgoing, mask=mask)
    tl.store(weight_gradients + program.to(tl.int64) * width + column, weight_gradient, mask=mask)
