"""The Triton kernel of `model.kernels.adamw`: one pass over master weights, gradients and moments."""

import triton
import triton.language as tl


@triton.jit
def adamw_kernel(
    master,
    gradient,
    first_moment,
    second_moment,
    working,
    changing,
    elements,
    complement1,
    beta2,
    complement2,
    eps,
    weight_decay,
    HAS_WORKING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of elements; nothing is written where the factor on the gradients is no number.

    The complements are 1 - beta, which in fp32 would be off by 2e-7.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < elements
    rate, factor = tl.load(changing), tl.load(changing + 3)
    correction1, correction2 = tl.load(changing + 1), tl.load(changing + 2)
    scaled = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32) * factor
    first = tl.load(first_moment + place, mask=here, other=0.0)
    second = tl.load(second_moment + place, mask=here, other=0.0)
    weight = tl.load(master + place, mask=here, other=0.0)
    first += complement1 * (scaled - first)
    second = beta2 * second + complement2 * scaled * scaled
    # Divisions and roots rounded as PyTorch rounds them: the memory leaves time for it.
    denominator = tl.sqrt_rn(tl.div_rn(second, correction2)) + eps
    weight = weight * (1.0 - rate * weight_decay) - tl.div_rn(tl.div_rn(rate, correction1) * first, denominator)
    is_good = place < tl.where(factor - factor == 0.0, elements, 0)  # neither NaN nor infinite
    tl.store(first_moment + place, first, mask=is_good)
    tl.store(second_moment + place, second, mask=is_good)
    tl.store(master + place, weight, mask=is_good)
    if HAS_WORKING:
        tl.store(working + place, weight, mask=is_good)
