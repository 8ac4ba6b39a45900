"""AdamW's moments in 8 bits: small floating-point numbers, and a scale for each block of 256.

As in block-wise quantization (arXiv 2110.02861), one large value spoils the precision of its own
block only. What differs from that paper:

    first moment     sign, 4 bits of exponent, 3 of mantissa
    second moment    its square root: 5 bits of exponent, 3 of mantissa
    scale            a power of two for each block, in 8 bits
    rounding         stochastic

The moments change by 5 to 10 % a step, numbers with 3 bits of mantissa are 6 to 12 % apart: rounded
to the nearest, a moment would never decay. The square root has half the range of exponents. Since
scales are powers of two, a moment that was read from these bits is written with the same value
again, and has at most 8 bits of mantissa: bf16 holds it exactly.

    code 8-bit     0  1    2    …  8  9      …  16    17     …
    value          0  1/8  2/8  …  1  1+1/8  …  2     2+1/4  …      times 2 ** scale
"""

from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 256
"""Elements with a scale of their own."""
_SLICE_ELEMENTS = 1 << 22
"""A multiple of `BLOCK`: conversion takes some 40 bytes for each of them."""


@dataclass(frozen=True)
class Format:
    """Numbers of one sign: exponents in `largest_code >> 3`, 3 bits of mantissa.

    Attributes:
        largest_code: of its numbers.
        exponent: of the largest number, which is 1.875 times this power of two.
        least_scale: smallest exponent of a block's scale.
    """

    largest_code: int
    exponent: int
    least_scale: int


FIRST = Format(largest_code=127, exponent=14, least_scale=-100)
SECOND = Format(largest_code=255, exponent=30, least_scale=-57)
"""Of the square root; with its scale the square is no subnormal bf16."""


def blocks_of(elements: int) -> int:
    """Number of blocks."""
    return -(-elements // BLOCK)


def zeros(elements: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Moments of zeros, as an optimizer keeps them."""
    return {
        "exp_avg": torch.zeros(elements, dtype=torch.uint8, device=device),
        "exp_avg_sq": torch.zeros(elements, dtype=torch.uint8, device=device),
        "exp_avg_scale": torch.zeros(blocks_of(elements), dtype=torch.int8, device=device),
        "exp_avg_sq_scale": torch.zeros(blocks_of(elements), dtype=torch.int8, device=device),
    }


def is_eight_bit(states: dict[str, Any]) -> bool:
    """True for the moments of this module."""
    return "exp_avg_scale" in states


def decode_moments(states: dict[str, Any], elements: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """First and second moment in fp32; `elements` begin at a block."""
    blocks = slice(elements.start // BLOCK, blocks_of(elements.stop))
    codes = states["exp_avg"][elements].to(torch.int32)
    first = decode(codes & 127, states["exp_avg_scale"][blocks])
    first = torch.where(codes > 127, -first, first)
    root = decode(states["exp_avg_sq"][elements].to(torch.int32), states["exp_avg_sq_scale"][blocks])
    return first, root.square()


def encode_moments(
    states: dict[str, Any], elements: slice, first: torch.Tensor, second: torch.Tensor, noise: tuple[torch.Tensor, ...]
) -> None:
    """Writes moments, in fp32, into the states.

    Args:
        states: as `zeros` makes them.
        elements: begin at a block.
        first: first moment.
        second: second moment.
        noise: integers in [0, 65536) for each.
    """
    blocks = slice(elements.start // BLOCK, blocks_of(elements.stop))
    codes, scales = encode(first.abs(), noise[0], FIRST)
    states["exp_avg"][elements] = codes + 128 * (first < 0).to(torch.uint8)
    states["exp_avg_scale"][blocks] = scales
    states["exp_avg_sq"][elements], states["exp_avg_sq_scale"][blocks] = encode(second.sqrt(), noise[1], SECOND)


def encode(values: torch.Tensor, noise16: torch.Tensor, to: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes values of at least 0.

    Returns:
        Codes in uint8, and the scale of each block in int8.
    """
    padded = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = _scales(padded.amax(dim=1), to)
    scaled = values * _power_of_two(-scales).repeat_interleave(BLOCK)[: len(values)]
    exponent = _exponent(scaled).clamp(min=0)
    steps = (scaled * _power_of_two(3 - exponent) + noise16.float() / 65536).floor()
    codes = (8 * exponent + steps.to(torch.int32)).clamp(max=to.largest_code)
    return codes.to(torch.uint8), scales.to(torch.int8)


def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values of codes, without sign."""
    exponent = ((codes >> 3) - 1).clamp(min=0)
    values = (codes - 8 * exponent).float() * _power_of_two(exponent - 3)
    return values * _power_of_two(scales.to(torch.int32)).repeat_interleave(BLOCK)[: len(codes)]


def _scales(largest: torch.Tensor, to: Format) -> torch.Tensor:
    """The smallest scales with which no value of a block is above the largest number."""
    is_above = (largest.view(torch.int32) & 0x7FFFFF) > 0x700000  # 1.875
    return (_exponent(largest) - to.exponent + is_above).clamp(to.least_scale, 100)


def _exponent(values: torch.Tensor) -> torch.Tensor:
    return ((values.contiguous().view(torch.int32) >> 23) & 0xFF) - 127


def _power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    return ((exponents + 127) << 23).to(torch.int32).view(torch.float32)


def moments_to_bf16(states: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Both moments in bf16, which holds them exactly; for a file."""
    elements = len(states["exp_avg"])
    moments = [torch.empty(elements, dtype=torch.bfloat16, device=states["exp_avg"].device) for _ in range(2)]
    for begin in range(0, elements, _SLICE_ELEMENTS):
        some = slice(begin, min(begin + _SLICE_ELEMENTS, elements))
        for whole, part in zip(moments, decode_moments(states, some), strict=True):
            whole[some] = part
    return dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))


def moments_from(first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
    """Encodes flat moments, to the nearest; those of `moments_to_bf16` keep their values."""
    states = zeros(len(first), first.device)
    for begin in range(0, len(first), _SLICE_ELEMENTS):
        some = slice(begin, min(begin + _SLICE_ELEMENTS, len(first)))
        half = torch.full((some.stop - some.start,), 0x8000, device=first.device)
        encode_moments(states, some, first[some].float(), second[some].float(), (half, half))
    return states
