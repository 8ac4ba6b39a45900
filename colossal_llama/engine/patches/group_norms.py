"""Patch of ColossalAI 0.5.0: the gradient norm of ZeRO's optimizer with several parameter groups.

It has nothing to do with one group.
"""

from types import MethodType
from typing import Any

import torch
from colossalai.zero.low_level import LowLevelZeroOptimizer


def reduce_norm_once(optimizer: Any) -> None:
    """Patch: a pipeline whose stages have different parameter groups waits forever in the norm.

    Cause: ZeRO's optimizer reduces the norm of each group over all stages, and the embeddings'
    group is on the first and the last stage only. Remedy: the first group's norm is that of all
    groups, in one reduction, and the others' are zero.

    Args:
        optimizer: prepared; of any plugin.
    """
    if not isinstance(optimizer, LowLevelZeroOptimizer) or optimizer.num_param_groups < 2:
        return
    norm_of = optimizer._compute_grad_norm

    def compute(self: LowLevelZeroOptimizer, dp_pg: Any, gradients: list[torch.Tensor], norm_type: int = 2) -> float:
        groups = [self.get_working_grads_by_group_id(number) for number in range(self.num_param_groups)]
        if not gradients or gradients[0] is not groups[0][0]:
            return 0.0
        return norm_of(dp_pg=dp_pg, gradients=[gradient for group in groups for gradient in group], norm_type=norm_type)

    optimizer._compute_grad_norm = MethodType(compute, optimizer)
