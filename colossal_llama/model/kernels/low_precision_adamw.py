"""AdamW on bf16 weights without fp32 master weights, and with moments in 16 or 8 bits.

    bytes a parameter          fp32    bf16    8bit
    weights, gradients          2+2     2+2     2+2
    master weights                4       -       -
    two moments                 4+4     2+2     1+1    (and 2 in 256)
    together                     16       8       6

Weights are rounded stochastically (model.kernels.stochastic_rounding), moments in bf16 to the
nearest: they change by 5 % and more a step, bf16 numbers are 0.4 to 0.8 % apart. Moments in 8 bits:
model.kernels.eight_bit_moments. All arithmetic is in fp32.
"""

from dataclasses import dataclass
from typing import Any

import torch

from colossal_llama.model.kernels import eight_bit_moments
from colossal_llama.model.kernels.eight_bit_moments import BLOCK, blocks_of, decode_moments, encode_moments
from colossal_llama.model.kernels.stochastic_rounding import noise, to_bf16

_PROGRAM_ELEMENTS = 1024
_SLICE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Noise:
    """Noise of a parameter's rounding in a step.

    Attributes:
        key: by `stochastic_rounding.noise_key`.
        first: number in the whole parameter of the first element that is here.
    """

    key: int
    first: int


def low_precision_adamw(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    states: dict[str, Any],
    elements: slice | None,
    scalars: torch.Tensor,
    chance: Noise,
    hyperparameters: tuple[float, float, float, float],
    fused: bool,
) -> None:
    """Updates weights and moments in place.

    Args:
        weight: bf16, flat and contiguous.
        gradient: the same length, any floating dtype, before scaling.
        states: `exp_avg` and `exp_avg_sq` in bf16, or those of `eight_bit_moments.zeros`.
        elements: that are updated; None: all. Other moments of a block may be rounded again.
        scalars: from `adamw.step_scalars`. Where the gradient factor is non-finite nothing is
            updated.
        chance: of the rounding.
        hyperparameters: beta1, beta2, eps, weight decay.
        fused: True for one Triton kernel; else operation by operation.
    """
    begin, end = (0, weight.numel()) if elements is None else (elements.start, elements.stop)
    if begin == end:
        return
    if fused:
        _launch(weight, gradient, states, (begin, end), scalars, chance, hyperparameters)
        return
    whole_blocks = begin // BLOCK * BLOCK
    for first in range(whole_blocks, end, _SLICE_ELEMENTS):
        last = min(first + _SLICE_ELEMENTS, end)
        _update_slice(weight, gradient, states, (begin, first, last), scalars, chance, hyperparameters)


def _update_slice(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    states: dict[str, Any],
    bounds: tuple[int, int, int],
    scalars: torch.Tensor,
    chance: Noise,
    hyperparameters: tuple[float, float, float, float],
) -> None:
    """Updates elements [first, last) from `begin` on; `first` is the beginning of a block."""
    begin, first, last = bounds
    rate, correction1, correction2, factor = scalars.unbind()
    beta1, beta2, eps, weight_decay = hyperparameters
    if not bool(factor.isfinite()):
        return
    # A block's scale is that of all its elements.
    blocks = slice(first, min(blocks_of(last) * BLOCK, weight.numel()))
    moments = _moments(states, blocks)
    old = weight[blocks].float()
    scaled = gradient[blocks].float() * factor
    new_first = moments[0] + (1.0 - beta1) * (scaled - moments[0])
    new_second = beta2 * moments[1] + (1.0 - beta2) * scaled * scaled
    denominator = (new_second / correction2).sqrt() + eps
    updated = old * (1.0 - rate * weight_decay) - rate / correction1 * new_first / denominator
    numbers = torch.arange(blocks.start, blocks.stop, device=weight.device)
    is_updated = (numbers >= begin) & (numbers < last)
    one, other = noise(chance.first + blocks.start, len(old), chance.key, weight.device)
    weight[blocks] = torch.where(is_updated, to_bf16(updated, one & 0xFFFF), weight[blocks])
    new_first = torch.where(is_updated, new_first, moments[0])
    new_second = torch.where(is_updated, new_second, moments[1])
    _set_moments(states, blocks, new_first, new_second, (one >> 16, other >> 16))


def _moments(states: dict[str, Any], elements: slice) -> tuple[torch.Tensor, torch.Tensor]:
    if eight_bit_moments.is_eight_bit(states):
        return decode_moments(states, elements)
    return states["exp_avg"][elements].float(), states["exp_avg_sq"][elements].float()


def _set_moments(
    states: dict[str, Any],
    elements: slice,
    first: torch.Tensor,
    second: torch.Tensor,
    noise16: tuple[torch.Tensor, torch.Tensor],
) -> None:
    if eight_bit_moments.is_eight_bit(states):
        encode_moments(states, elements, first, second, noise16)
        return
    states["exp_avg"][elements], states["exp_avg_sq"][elements] = first, second


def _launch(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    states: dict[str, Any],
    bounds: tuple[int, int],
    scalars: torch.Tensor,
    chance: Noise,
    hyperparameters: tuple[float, float, float, float],
) -> None:
    from colossal_llama.model.kernels.low_precision_adamw_triton import bf16_kernel, eight_bit_kernel

    beta1, beta2, eps, weight_decay = hyperparameters
    begin, end = bounds
    numbers = (chance.key, chance.first & 0xFFFFFFFF, begin, end)
    constants = tuple(map(float, (1.0 - beta1, beta2, 1.0 - beta2, eps, weight_decay)))
    if not eight_bit_moments.is_eight_bit(states):
        programs = -(-(end - begin) // _PROGRAM_ELEMENTS)
        moments = (states["exp_avg"], states["exp_avg_sq"])
        bf16_kernel[(programs,)](
            weight, gradient, *moments, scalars, *numbers, *constants, ELEMENTS=_PROGRAM_ELEMENTS, num_warps=4
        )
        return
    first_block, rows = begin // BLOCK, _PROGRAM_ELEMENTS // BLOCK
    programs = -(-(blocks_of(end) - first_block) // rows)
    codes = [states[name] for name in ("exp_avg", "exp_avg_sq", "exp_avg_scale", "exp_avg_sq_scale")]
    eight_bit_kernel[(programs,)](
        weight, gradient, *codes, scalars, *numbers, weight.numel(), *constants, ROWS=rows, BLOCK=BLOCK, num_warps=4
    )
