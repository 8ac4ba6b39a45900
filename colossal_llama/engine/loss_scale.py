"""The loss scaler of fp16 training, wherever ColossalAI's optimizers keep it."""

from typing import Any

import torch

_MIXINS = ("mixed_precision_mixin", "mixed_precision", "mix_precision_mixin")


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
