"""AdamW and its learning rate, which is a pure function of the step: nothing to restore, nothing to step out of turn."""

import math
from typing import Any

import torch
from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.gemini import gemini_optimizer

from colossal_llama.utils.engine import fused_adam

BETAS = (0.9, 0.95)
FINAL_FRACTION = 0.1
WARMUP_FRACTION = 0.025


class Adam(HybridAdam):
    """ColossalAI's AdamW, with a fused update also where master weights are in host memory and gradients in bf16.

    That is Gemini with `placement_policy="auto"`. HybridAdam takes unfused operations for it, and forgets the factor that clips.
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
        fused_adam(
            [exact],
            [data],
            [exp_avg],
            [exp_avg_sq],
            lr,
            beta1,
            beta2,
            eps,
            step,
            adamw_mode=use_adamw,
            bias_correction=True,
            weight_decay=weight_decay,
            div_scale=-1,
        )


# Gemini takes optimizers by their exact class, from this list.
gemini_optimizer._AVAIL_OPTIM_LIST.add(Adam)


def build_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> HybridAdam:
    """ColossalAI's AdamW over the trainable parameters; on CPU and GPU it computes with PyTorch's fused kernels."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Adam(trainable, lr=lr, betas=BETAS, weight_decay=weight_decay, adamw_mode=True)


def default_warmup_steps(total_steps: int) -> int:
    """2.5 % of all steps."""
    return round(WARMUP_FRACTION * total_steps)


def learning_rate(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up to the peak, then a half cosine down to a tenth of it.

    Args:
        step: 0 for the first step, `total_steps` − 1 for the last.
        total_steps: of the whole run, warm-up included.
        warmup_steps: step `warmup_steps` − 1 is the first at the peak.
        peak: the largest rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay_steps = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    floor = FINAL_FRACTION * peak
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


_MIXINS = ("mixed_precision_mixin", "mixed_precision", "mix_precision_mixin")  # where ColossalAI's optimizers keep it


def loss_scaler(optimizer: torch.optim.Optimizer) -> Any:
    """The dynamic loss scaler of fp16 training, wherever the plugin keeps it; None in other precisions."""
    if hasattr(optimizer, "scaler"):
        return optimizer.scaler
    return next((mixin.grad_scaler for mixin in _fp16_mixins(optimizer)), None)


def loss_scale(optimizer: torch.optim.Optimizer) -> float:
    """Factor on the gradients that the plugin's optimizer holds and whose norm it reports; 1 outside fp16."""
    return next((float(mixin.loss_scale) for mixin in _fp16_mixins(optimizer)), 1.0)


def skipped_last_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the plugin's optimizer left the last update out because a scaled fp16 gradient had overflowed."""
    return any(mixin.found_overflow.item() > 0 for mixin in _fp16_mixins(optimizer))


def _fp16_mixins(optimizer: torch.optim.Optimizer) -> list[Any]:
    mixins = [getattr(optimizer, name, None) for name in _MIXINS]
    return [mixin for mixin in mixins if hasattr(mixin, "grad_scaler")]
