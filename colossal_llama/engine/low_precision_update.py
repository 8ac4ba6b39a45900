"""Optimizer states in 16 or 8 bits for ZeRO: bf16 weights without fp32 master weights.

The plugin is built without master weights, so that its "master" shards are views of the model's own
weights. Its step is that of engine.zero_update with another update of each shard
(model.kernels.low_precision_adamw), on a host without GPU, too.
"""

import torch
import torch.distributed as dist
from colossalai.zero.low_level import LowLevelZeroOptimizer

from colossal_llama.engine.state_formats import StateFormat
from colossal_llama.engine.zero_update import ParameterUpdate, state_for_next_step, use_fused_step
from colossal_llama.model.kernels import eight_bit_moments
from colossal_llama.model.kernels.low_precision_adamw import Noise, low_precision_adamw
from colossal_llama.model.kernels.stochastic_rounding import noise_key


def use_low_precision_step(optimizer: LowLevelZeroOptimizer, state_format: StateFormat, seed: int, fused: bool) -> None:
    """Replaces the step of one prepared optimizer that has no master weights, in place.

    Args:
        optimizer: of ZeRO.
        state_format: `bf16` or `8bit`.
        seed: of stochastic rounding.
        fused: True for Triton kernels.
    """
    assert not optimizer._master_weights
    numbers = {id(key): number for number, key in enumerate(_keys(optimizer))}

    def apply(state: dict, update: ParameterUpdate, elements: slice | None, scalars: torch.Tensor) -> None:
        group = update.group
        first = dist.get_rank(update.process_group) * update.master.numel()
        chance = Noise(noise_key(seed, state["step"], numbers[id(update.master)]), first)
        hyper = (*group["betas"], group["eps"], group["weight_decay"])
        low_precision_adamw(update.master, update.gradient, state, elements, scalars, chance, hyper, fused)

    optimizer.state_format = state_format
    use_fused_step(optimizer, apply, _next_eight_bit_state if state_format == "8bit" else None)


def _keys(optimizer: LowLevelZeroOptimizer) -> list[torch.Tensor]:
    return [key for group in optimizer.optim.param_groups for key in group["params"]]


def _next_eight_bit_state(state: dict, master: torch.Tensor) -> dict:
    if "exp_avg" not in state:
        state.update(step=0, **eight_bit_moments.zeros(master.numel(), master.device))
    return state_for_next_step(state, master)
