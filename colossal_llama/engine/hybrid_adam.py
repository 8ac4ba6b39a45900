"""AdamW, as the plugins take it."""

import math

import torch
from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.gemini import gemini_optimizer

from colossal_llama.engine.adam_extension import fused_adam

BETAS = (0.9, 0.95)


class Adam(HybridAdam):
    """ColossalAI's AdamW, with a fused update also where master weights are in host memory and gradients in bf16.

    That is Gemini with `placement_policy="auto"`. HybridAdam takes unfused operations for it, and
    forgets the factor that clips.
    """

    def step(self, closure: None = None, div_scale: float = -1) -> None:
        """Updates all parameters; gradients are divided by `div_scale` when it is above 0."""
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
        """What HybridAdam calls for half-precision gradients on the CPU."""
        exact = grad.float()
        if self._div_scale > 0:
            exact = exact.div_(self._div_scale)
        # The kernel wants the step and computes 1 - beta^step from it.
        step = math.log(1.0 - bias_correction2) / math.log(beta2) if bias_correction2 < 1.0 else math.inf
        hyper = (lr, beta1, beta2, eps, step, use_adamw, True, weight_decay, -1)
        fused_adam([exact], [data], [exp_avg], [exp_avg_sq], *hyper)


# Gemini takes optimizers by their exact class, from this list.
gemini_optimizer._AVAIL_OPTIM_LIST.add(Adam)


def build_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> HybridAdam:
    """ColossalAI's AdamW over the trainable parameters; on CPU and GPU it computes with PyTorch's fused kernels."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Adam(trainable, lr=lr, betas=BETAS, weight_decay=weight_decay, adamw_mode=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
