"""Triton kernel of `model.kernels.adamw`: one pass over master weights, gradients and moments."""

import triton
import triton.language as tl


@triton.jit
def adamw_kernel(
    master,
    gradient,
    first_moment,
    second_moment,
    working,
    scalars,
    elements,
    complement1,
    beta2,
    complement2,
    eps,
    weight_decay,
    HAS_WORKING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates one block of elements; nothing is written where the gradient factor is non-finite.

    The complements are 1 - beta, which in fp32 would be off by 2e-7.
    """
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < elements
    rate, factor = tl.load(scalars), tl.load(scalars + 3)
    correction1, correction2 = tl.load(scalars + 1), tl.load(scalars + 2)
    scaled = tl.load(gradient + offset, mask=mask, other=0.0).to(tl.float32) * factor
    first = tl.load(first_moment + offset, mask=mask, other=0.0)
    second = tl.load(second_moment + offset, mask=mask, other=0.0)
    weight = tl.load(master + offset, mask=mask, other=0.0)
    first += complement1 * (scaled - first)
    second = beta2 * second + complement2 * scaled * scaled
    # Divisions and roots rounded as PyTorch rounds them: the memory leaves time for it.
    denominator = tl.sqrt_rn(tl.div_rn(second, correction2)) + eps
    weight = weight * (1.0 - rate * weight_decay) - tl.div_rn(tl.div_rn(rate, correction1) * first, denominator)
    is_finite_mask = offset < tl.where(factor - factor == 0.0, elements, 0)  # neither NaN nor infinite
    tl.store(first_moment + offset, first, mask=is_finite_mask)
    tl.store(second_moment + offset, second, mask=is_finite_mask)
    tl.store(master + offset, weight, mask=is_finite_mask)
    if HAS_WORKING:
        tl.store(working + offset, weight, mask=is_finite_mask)
