"""Stochastic rounding of fp32 to bf16: up or down by chance, right on average (arXiv 1502.02551).

An AdamW step changes most weights by less than half the distance of two bf16 numbers. Rounded to
the nearest, such a weight never moves; rounded stochastically, it moves as far as it should in the
mean of many steps. So bf16 weights can be trained without fp32 master weights (arXiv 2010.06192).

The chance is a hash of the element's number in its parameter and of a key for parameter and step.
It is the same on every device, for any number of ranks, and in a resumed run.
"""

import torch

_MASK = 0xFFFFFFFF


def noise_key(seed: int, step: int, parameter: int) -> int:
    """Key of a parameter's noise in a step, in 31 bits.

    >>> noise_key(42, 1, 0) != noise_key(42, 2, 0) != noise_key(42, 2, 1)
    True
    """
    key = 0
    for number in (seed, step, parameter):
        key = _mixed_int((key + number + 0x9E3779B9) & _MASK)
    return key >> 1


def noise(first: int, count: int, key: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two hashes of 32 bits for each of `count` elements from number `first` on, int64."""
    elements = torch.arange(first, first + count, dtype=torch.int64, device=device) & _MASK
    one = _mixed(elements ^ key)
    return one, _mixed((one + 0x9E3779B9) & _MASK)


def to_bf16(values: torch.Tensor, noise16: torch.Tensor) -> torch.Tensor:
    """Rounds fp32 values; `noise16` are integers in [0, 65536).

    >>> halfway = torch.full((2,), 1.0 + 2**-8)  # between 1 and 1 + 2**-7
    >>> to_bf16(halfway, torch.tensor([0x7FFF, 0x8000])).tolist()
    [1.0, 1.0078125]
    """
    bits = values.contiguous().view(torch.int32) + noise16.to(torch.int32)
    return (bits & -0x10000).view(torch.float32).to(torch.bfloat16)


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """The last steps of MurmurHash3 on 32 bits, in int64."""
    values = values ^ (values >> 16)
    values = _product(values, 0x85EBCA6B)
    values = values ^ (values >> 13)
    values = _product(values, 0xC2B2AE35)
    return values ^ (values >> 16)


def _product(values: torch.Tensor, factor: int) -> torch.Tensor:
    """The low 32 bits of a product, without overflow in int64."""
    low = values & 0xFFFF
    return (low * factor + ((((values >> 16) * factor) & 0xFFFF) << 16)) & _MASK


def _mixed_int(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B & _MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & _MASK
    return value ^ (value >> 16)
