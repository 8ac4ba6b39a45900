"""Optimizer states in memory: moments in fp32, bf16 or 8 bits, and as files have them."""

from typing import Any, Literal, TypeAlias

import torch

from colossal_llama.model.kernels import eight_bit_moments

StateFormat: TypeAlias = Literal["fp32", "bf16", "8bit"]
"""fp32 is with master weights, the others are without (engine.low_precision_update)."""


def moments_of(states: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors of a parameter's states as they are written into a file, without the step count."""
    if eight_bit_moments.is_eight_bit(states):
        return eight_bit_moments.moments_to_bf16(states)
    return {name: state for name, state in states.items() if isinstance(state, torch.Tensor) and name != "step"}


def states_from(state_format: StateFormat, moments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A parameter's states as the optimizer keeps them, of moments in its shape."""
    if state_format == "8bit":
        return eight_bit_moments.moments_from(moments["exp_avg"], moments["exp_avg_sq"])
    return moments
