"""AdamW optimizer in the class that the plugins accept."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.gemini import gemini_optimizer

from colossal_llama.engine.adam_extension import fused_adam, update_tensors
from colossal_llama.engine.parameter_groups import ParameterGroup, whole_group
from colossal_llama.engine.row_segments import Segment, updates_of

BETAS = (0.9, 0.95)


class FusedHybridAdam(HybridAdam):
    """ColossalAI's HybridAdam, fused also for half-precision gradients of host parameters.

    Those occur in Gemini with `placement_policy="auto"`. HybridAdam computes them in unfused
    operations, and ignores the factor that clips.
    """

    row_segments: dict[torch.Tensor, tuple[Segment, ...]]
    """By parameters that are not updated as a whole (engine.row_segments)."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.row_segments = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the groups that a pipeline stage has parameters of, and drops the others.

        ZeRO takes the dtype of the weights from the first parameter of the first group.
        """
        if "param_groups" in state:
            kept = [group for group in state["param_groups"] if group["params"]]
            state = {**state, "param_groups": kept or state["param_groups"]}
        super().__setstate__(state)

    def step(self, closure: None = None, div_scale: float = -1) -> None:
        """Updates all parameters; gradients are divided by a positive `div_scale`."""
        self._div_scale = div_scale
        divided = {key: key.grad for key in self.row_segments if key.grad is not None}
        for key in divided:
            key.grad = None  # HybridAdam passes it over
        super().step(closure, div_scale)
        for group in self.param_groups if divided else ():
            for key in filter(divided.__contains__, group["params"]):
                self._update_segments(group, key, divided[key])

    @torch.no_grad()
    def _update_segments(self, group: dict[str, Any], key: torch.Tensor, gradient: torch.Tensor) -> None:
        """Updates a parameter range by range, each with its learning rate."""
        state, weights = self.state[key], key.data
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(weights), exp_avg_sq=torch.zeros_like(weights))
        state["step"] += 1
        tensors = [tensor.view(-1) for tensor in (gradient, weights, state["exp_avg"], state["exp_avg_sq"])]
        beta1, beta2 = group["betas"]
        for elements, rate in updates_of(self, group, key):
            lists = [[tensor[elements]] for tensor in tensors]
            hyper = (rate, beta1, beta2, group["eps"], state["step"], True, True, group["weight_decay"])
            update_tensors(lists, *hyper, self._div_scale)

    def torch_adam_update(
        self,
        data: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        bias_correction1: float,
        bias_correction2: float,
        use_adamw: bool = False,
    ) -> None:
        """Replaces HybridAdam's unfused update of half-precision gradients on the CPU."""
        exact = grad.float()
        if self._div_scale > 0:
            exact = exact.div_(self._div_scale)
        # The kernel takes the step and computes 1 - beta^step from it.
        step = math.log(1.0 - bias_correction2) / math.log(beta2) if bias_correction2 < 1.0 else math.inf
        hyper = (lr, beta1, beta2, eps, step, use_adamw, True, weight_decay, -1)
        fused_adam([exact], [data], [exp_avg], [exp_avg_sq], *hyper)


# Gemini accepts the exact classes of this list only, no subclasses.
gemini_optimizer._AVAIL_OPTIM_LIST.add(FusedHybridAdam)


def build_optimizer(
    model: torch.nn.Module, lr: float, weight_decay: float, groups: Sequence[ParameterGroup] = ()
) -> HybridAdam:
    """Builds AdamW over the trainable parameters, computed by PyTorch's fused kernels.

    Args:
        model: to be trained.
        lr: peak learning rate.
        weight_decay: of all parameters.
        groups: of the trainable parameters; none: all are one group.
    """
    settings = [group.settings(lr) for group in groups or (whole_group(model),)]
    return FusedHybridAdam(settings, lr=lr, betas=BETAS, weight_decay=weight_decay, adamw_mode=True)
