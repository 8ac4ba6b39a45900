"""Dynamic loss scale of fp16 training, wherever the plugins' optimizers keep it."""

from typing import Any

import torch

_MIXINS = ("mixed_precision_mixin", "mixed_precision", "mix_precision_mixin")
_COUNTERS = ("_growth_step", "_hysteresis_step")
"""Attributes of ColossalAI's scaler that its own `state_dict` lacks."""


def loss_scale(optimizer: torch.optim.Optimizer) -> float:
    """Factor on the gradients in the optimizer and on the norm that it reports; 1 outside fp16."""
    return next((float(mixin.loss_scale) for mixin in _fp16_mixins(optimizer)), 1.0)


def skipped_last_step(optimizer: torch.optim.Optimizer) -> bool:
    """True when the optimizer skipped the last update because a scaled fp16 gradient overflowed."""
    return any(mixin.found_overflow.item() > 0 for mixin in _fp16_mixins(optimizer))


def loss_scale_state(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """State of the loss scaler as JSON values; None in other precisions."""
    scaler = _loss_scaler(optimizer)
    if scaler is None:
        return None
    if hasattr(scaler, "get_scale"):  # PyTorch's, of `ddp`
        return scaler.state_dict()
    return {"scale": scaler.scale.item(), **{name: getattr(scaler, name) for name in _COUNTERS}}


def restore_loss_scale(optimizer: torch.optim.Optimizer, state: dict[str, Any] | None) -> None:
    """Restores the result of `loss_scale_state`, if run and checkpoint both have a scale."""
    scaler = _loss_scaler(optimizer)
    if scaler is None or state is None:
        return
    if hasattr(scaler, "get_scale"):
        scaler.load_state_dict(state)
        return
    scaler._scale.fill_(state["scale"])
    for name in _COUNTERS:
        setattr(scaler, name, state[name])


def _loss_scaler(optimizer: torch.optim.Optimizer) -> Any:
    """The dynamic loss scaler; None in other precisions than fp16."""
    if hasattr(optimizer, "scaler"):
        return optimizer.scaler
    return next((mixin.grad_scaler for mixin in _fp16_mixins(optimizer)), None)


def _fp16_mixins(optimizer: torch.optim.Optimizer) -> list[Any]:
    mixins = [getattr(optimizer, name, None) for name in _MIXINS]
    return [mixin for mixin in mixins if hasattr(mixin, "grad_scaler")]
