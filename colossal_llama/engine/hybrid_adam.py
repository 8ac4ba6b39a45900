"""AdamW optimizer in the class that the plugins accept."""

import math

import torch
from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.gemini import gemini_optimizer

from colossal_llama.engine.adam_extension import fused_adam

BETAS = (0.9, 0.95)


class FusedHybridAdam(HybridAdam):
    """ColossalAI's HybridAdam, fused also for half-precision gradients of host parameters.

    Those occur in Gemini with `placement_policy="auto"`. HybridAdam computes them in unfused
    operations, and ignores the factor that clips.
    """

    def step(self, closure: None = None, div_scale: float = -1) -> None:
        """Updates all parameters; gradients are divided by a positive `div_scale`."""
        self._div_scale = div_scale
        return super().step(closure, div_scale)

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


def build_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> HybridAdam:
    """Builds AdamW over the trainable parameters, computed by PyTorch's fused kernels."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return FusedHybridAdam(trainable, lr=lr, betas=BETAS, weight_decay=weight_decay, adamw_mode=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
