"""Triton kernels of `model.kernels.low_precision_adamw`: one pass over weights and moments."""

import triton
import triton.language as tl

_NUMBERS = ["key", "first", "begin", "end", "total"]  # differ by step and range: no kernel for each


@triton.jit
def _mixed(values):
    values = values ^ (values >> 16)
    values = values * 0x85EBCA6B
    values = values ^ (values >> 13)
    values = values * 0xC2B2AE35
    return values ^ (values >> 16)


@triton.jit
def _to_bf16(values, noise16):
    bits = values.to(tl.uint32, bitcast=True) + noise16
    return (bits & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit
def _to_nearest_bf16(values):
    # Written out, as Triton's interpreter cuts off, where a GPU rounds.
    return _to_bf16(values, 0x7FFF + ((values.to(tl.uint32, bitcast=True) >> 16) & 1))


@triton.jit
def _exponent(values):
    return ((values.to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127


@triton.jit
def _power_of_two(exponents):
    return ((exponents + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _scales(largest, EXPONENT: tl.constexpr, LEAST: tl.constexpr):
    is_above = ((largest.to(tl.int32, bitcast=True) & 0x7FFFFF) > 0x700000).to(tl.int32)
    return tl.minimum(tl.maximum(_exponent(largest) - EXPONENT + is_above, LEAST), 100)


@triton.jit
def _codes(values, scales, noise16, LARGEST: tl.constexpr):
    scaled = values * _power_of_two(-scales)
    exponent = tl.maximum(_exponent(scaled), 0)
    steps = tl.floor(scaled * _power_of_two(3 - exponent) + noise16.to(tl.float32) / 65536)
    return tl.minimum(8 * exponent + steps.to(tl.int32), LARGEST)


@triton.jit
def _values(codes, scales):
    exponent = tl.maximum((codes >> 3) - 1, 0)
    return (codes - 8 * exponent).to(tl.float32) * _power_of_two(exponent - 3) * _power_of_two(scales)


@triton.jit
def _updated(weight, scaled, first, second, scalars, complement1, beta2, complement2, eps, weight_decay):
    """Weights and moments in fp32 after the step."""
    rate, correction1, correction2 = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
    first += complement1 * (scaled - first)
    second = beta2 * second + complement2 * scaled * scaled
    denominator = tl.sqrt_rn(tl.div_rn(second, correction2)) + eps
    weight = weight * (1.0 - rate * weight_decay) - tl.div_rn(tl.div_rn(rate, correction1) * first, denominator)
    return weight, first, second


@triton.jit(do_not_specialize=_NUMBERS)
def bf16_kernel(
    weight,
    gradient,
    first_moment,
    second_moment,
    scalars,
    key,
    first,
    begin,
    end,
    complement1,
    beta2,
    complement2,
    eps,
    weight_decay,
    ELEMENTS: tl.constexpr,
):
    """Updates elements [begin, end); nothing where the gradient factor is non-finite."""
    offset = begin.to(tl.int64) + tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    factor = tl.load(scalars + 3)
    mask = offset < tl.where(factor - factor == 0.0, end, 0)
    scaled = tl.load(gradient + offset, mask=mask, other=0.0).to(tl.float32) * factor
    one = tl.load(first_moment + offset, mask=mask, other=0.0).to(tl.float32)
    two = tl.load(second_moment + offset, mask=mask, other=0.0).to(tl.float32)
    old = tl.load(weight + offset, mask=mask, other=0.0).to(tl.float32)
    new, one, two = _updated(old, scaled, one, two, scalars, complement1, beta2, complement2, eps, weight_decay)
    noise = _mixed((offset + first).to(tl.uint32) ^ key.to(tl.uint32))
    tl.store(weight + offset, _to_bf16(new, noise & 0xFFFF), mask=mask)
    tl.store(first_moment + offset, _to_nearest_bf16(one), mask=mask)
    tl.store(second_moment + offset, _to_nearest_bf16(two), mask=mask)


@triton.jit(do_not_specialize=_NUMBERS)
def eight_bit_kernel(
    weight,
    gradient,
    first_moment,
    second_moment,
    first_scale,
    second_scale,
    scalars,
    key,
    first,
    begin,
    end,
    total,
    complement1,
    beta2,
    complement2,
    eps,
    weight_decay,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Updates elements [begin, end) and encodes their blocks; a row of the program is a block."""
    block = begin.to(tl.int64) // BLOCK + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    offset = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    factor = tl.load(scalars + 3)
    is_there = offset < tl.where(factor - factor == 0.0, total, 0)
    is_updated = is_there & (offset >= begin) & (offset < end)
    has_block = block * BLOCK < tl.where(factor - factor == 0.0, total, 0)
    codes = tl.load(first_moment + offset, mask=is_there, other=0).to(tl.int32)
    scales = tl.load(first_scale + block, mask=has_block, other=0).to(tl.int32)
    one = _values(codes & 127, scales[:, None])
    one = tl.where(codes > 127, -one, one)
    codes = tl.load(second_moment + offset, mask=is_there, other=0).to(tl.int32)
    scales = tl.load(second_scale + block, mask=has_block, other=0).to(tl.int32)
    root = _values(codes, scales[:, None])
    scaled = tl.load(gradient + offset, mask=is_updated, other=0.0).to(tl.float32) * factor
    old = tl.load(weight + offset, mask=is_updated, other=0.0).to(tl.float32)
    new, new_one, new_two = _updated(
        old, scaled, one, root * root, scalars, complement1, beta2, complement2, eps, weight_decay
    )
    noise = _mixed((offset + first).to(tl.uint32) ^ key.to(tl.uint32))
    tl.store(weight + offset, _to_bf16(new, noise & 0xFFFF), mask=is_updated)
    one = tl.where(is_updated, new_one, one)
    scales = _scales(tl.max(tl.abs(one), axis=1), 14, -100)
    codes = _codes(tl.abs(one), scales[:, None], noise >> 16, 127) + tl.where(one < 0.0, 128, 0)
    tl.store(first_moment + offset, codes.to(tl.uint8), mask=is_there)
    tl.store(first_scale + block, scales.to(tl.int8), mask=has_block)
    root = tl.where(is_updated, tl.sqrt_rn(new_two), root)
    scales = _scales(tl.max(root, axis=1), 30, -57)
    noise = _mixed(noise + 0x9E3779B9)
    codes = _codes(root, scales[:, None], noise >> 16, 255)
    tl.store(second_moment + offset, codes.to(tl.uint8), mask=is_there)
    tl.store(second_scale + block, scales.to(tl.int8), mask=has_block)
