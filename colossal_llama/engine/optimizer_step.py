"""Optimizer step of any plugin: gradient norm, clipping, loss scale, refusal of non-finite updates.

Every plugin computes the norm of all gradients, over all ranks, before its inner AdamW changes a
weight. A step whose norm is NaN or Inf is refused there: on every rank alike, since all have the
same norm, and without another pass over the gradients. A step that the loss scaler of fp16 skips
because a scaled gradient overflowed is not a non-finite step.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from colossal_llama.engine.loss_scale import loss_scale, skipped_last_step
from colossal_llama.engine.low_precision_update import use_low_precision_step
from colossal_llama.engine.state_formats import StateFormat
from colossal_llama.engine.zero_offload_update import use_overlapped_offload_step, why_no_overlapped_offload_step
from colossal_llama.engine.zero_update import use_fused_step, why_no_fused_step

SMALLEST_LOSS_SCALE = 1.0
"""ColossalAI's `min_scale`. A gradient of fp16 that overflows at this one does so without a scale:
nothing is left to adapt."""


def use_states(optimizer: Any, device: torch.device, state_format: StateFormat, seed: int, fused: bool) -> str:
    """Makes a ZeRO optimizer without master weights keep its states in 16 or 8 bits.

    Args:
        optimizer: as `Backend.prepare` returned it.
        device: of the weights.
        state_format: `bf16` or `8bit`.
        seed: of stochastic rounding.
        fused: False: no Triton kernels on a GPU either.

    Returns:
        A line for the log.
    """
    use_low_precision_step(optimizer, state_format, seed, fused and device.type == "cuda")
    how = "one kernel a parameter" if fused and device.type == "cuda" else "operation by operation"
    return f"optimizer step: bf16 weights rounded stochastically, moments in {state_format}, {how}"


def choose_step(optimizer: Any, device: torch.device) -> str | None:
    """Replaces ZeRO's own update by a faster one where possible; after `Backend.prepare`.

    Returns:
        A line for the log; None when the plugin's own step stays on a host without GPU.
    """
    if why_no_overlapped_offload_step(optimizer) is None:
        use_overlapped_offload_step(optimizer)
        return "optimizer step: states in host memory, updated slice by slice, overlapped with the copies"
    if device.type != "cuda":
        return None
    reason = why_no_fused_step(optimizer, device)
    if reason is not None:
        return f"optimizer step: the plugin's own, {reason}"
    use_fused_step(optimizer)
    return "optimizer step: fused ZeRO step, one kernel a parameter"


def take_step(model: torch.nn.Module, optimizer: Any, clips_gradients: bool, gradient_clipping: float) -> float | None:
    """Clips the gradients, updates the weights, and clears the gradients.

    Args:
        model: the prepared model.
        optimizer: the prepared optimizer, with gradients accumulated.
        clips_gradients: True when `optimizer.step()` clips by itself.
        gradient_clipping: largest norm otherwise; 0: gradients are not clipped.

    Returns:
        The norm before clipping, without the loss scale; NaN or Inf where the update was refused;
        None where the plugin computes none, or where the loss scaler skipped an overflowed step.
    """
    norm = _step_that_clips(optimizer) if clips_gradients else _clip_and_step(model, optimizer, gradient_clipping)
    norm = None if norm is None else float(norm)
    if norm is not None and not math.isfinite(norm) and hasattr(optimizer, "uncount_last_step"):
        optimizer.uncount_last_step()
    optimizer.zero_grad()
    return norm


def _step_that_clips(optimizer: Any) -> Any:
    scale = loss_scale(optimizer)
    optimizer.step()
    norm = optimizer.get_grad_norm()
    if skipped_last_step(optimizer):
        return None if scale > SMALLEST_LOSS_SCALE else math.inf
    return None if norm is None else norm / scale


def _clip_and_step(model: torch.nn.Module, optimizer: Any, gradient_clipping: float) -> float | None:
    has_scaler = hasattr(optimizer, "scaler")
    if has_scaler:  # fp16: norm and limit are those of the gradients without the loss scale
        optimizer.unscale_grad()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clipping or float("inf")))
    scale = optimizer.scaler.get_scale() if has_scaler else 1.0
    if has_scaler or math.isfinite(norm):  # else refused, as `refuse_nonfinite_updates` does it for the other plugins
        optimizer.step()
    if has_scaler and not math.isfinite(norm) and scale > SMALLEST_LOSS_SCALE:
        return None  # an overflow: the scaler skipped the step
    return norm


def refuse_nonfinite_updates(optimizer: Any) -> None:
    """Makes a plugin's optimizer keep weights and moments when the gradient norm is NaN or Inf.

    Args:
        optimizer: as prepared by the plugin. Its inner optimizer's `step`, which it calls after the
            norm, is replaced. Clipping must be on (a limit of infinity will do), or some plugins
            compute no norm.
    """
    inner = optimizer.optim
    update: Callable[..., Any] = inner.step

    def step(*arguments: Any, **settings: Any) -> Any:
        norm = optimizer.get_grad_norm()
        if norm is not None and not math.isfinite(float(norm)):
            return None
        return update(*arguments, **settings)

    inner.step = step
